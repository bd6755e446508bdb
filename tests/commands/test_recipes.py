"""`layersim recipes`: what comes with layersim, by name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from layersim.__main__ import main
from layersim.commands.recipes import ROOT, named, with_paths
from tests import tiny


def test_every_recipe_has_a_name_and_says_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line for line in lines if not line.startswith(" ")]
    assert names == list(named())
    assert len(names) == len(list(ROOT.rglob("*.yaml"))), "no two have one name"
    assert max(map(len, lines)) < 80
    at = lines.index("paper/objectives/aligned")
    assert lines[at + 1] == "    The aligned loss: one head at every layer, later layers weighing more"


def test_one_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "digits/aligned"]) == 0
    assert capsys.readouterr().out == (ROOT / "vision/digits/aligned.yaml").read_text()


def test_a_name_stands_for_its_file_wherever_a_path_does() -> None:
    words = ["fit", "--config", "recipe:digits/aligned", "--config=recipe:paper/depth/six", "--note=a recipe:x"]
    first, second = ROOT / "vision/digits/aligned.yaml", ROOT / "paper/depth/six.yaml"
    assert with_paths(words) == ["fit", "--config", str(first), f"--config={second}", "--note=a recipe:x"]


def test_a_tilde_behind_an_equals_sign_is_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which shells leave as it is; alone it is YAML's null."""
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [
        "fit",
        "--trainer.default_root_dir=~/runs",
        "~/a",
        "--data.label_column=~",
        "--data.text_column=~a",
        "a~/b",
    ]
    told = [f"--trainer.default_root_dir={tmp_path}/runs", f"{tmp_path}/a"]
    assert with_paths(words) == ["fit", *told, *words[3:]]


def test_an_unknown_name_is_told_with_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "recipe:digits/alined"]) == 2
    said = capsys.readouterr().err
    assert "There is no recipe 'digits/alined'. Did you mean digits/aligned" in said
    assert main(["recipes", "sst2"]) == 2
    assert "Did you mean paper/glue/sst2 or paper/glue/sst2_small" in capsys.readouterr().err


def test_a_command_takes_them_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.limit_val_batches=1", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    overlay = "--config=recipe:paper/objectives/uniform"
    assert main(["validate", "--config", "recipe:digits/last_layer", overlay, "--experiment=mine", *short]) == 0
    (config,) = tmp_path.glob("runs/mine/*/config.yaml")
    assert "weights: uniform" in config.read_text()


def test_what_one_verb_keeps_the_others_read(layersim: Callable[..., Path]) -> None:
    """Options that not every verb has are kept where they were changed."""
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    measured = layersim("validate", *tiny.FLAGS[:-4], *quiet)
    trained = layersim("fit", f"--config={measured / 'config.yaml'}", *quiet, "--trainer.max_epochs=1")
    recipe = f"--config={trained / 'config.yaml'}"
    for verb in (["predict"], ["exits", "--risk=0.1"], ["export", "--to=exported"]):
        layersim(*verb, recipe, *quiet)
    told = layersim("validate", recipe, *quiet, "--verbose=true")
    assert "verbose: true" in (told / "config.yaml").read_text()
    layersim("predict", f"--config={told / 'config.yaml'}", *quiet, status=2)
