"""Sweep files: each flag and value is tried before the first trial."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from layersim.__main__ import main
from layersim.agent import from_agent
from layersim.errors import UserError
from layersim.sweep.check import Options, check
from layersim.sweep.file import read

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "experiments/vision/digits/aligned.yaml"


def write(folder: Path, swept: dict[str, Any], **changes: Any) -> Path:
    path = folder / "sweep.yaml"
    sweep = {
        "method": "grid",
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "parameters": swept,
        "command": ["${program}", "fit", "--config", str(RECIPE), "${args}"],
    }
    path.write_text(yaml.safe_dump(sweep | changes))
    return path


def test_what_an_agent_prints_is_said_in_the_options_words() -> None:
    printed = [
        "fit",
        "--a.b=None",
        "--c=16.0",
        "--d=1e-05",
        "--e=True",
        "--f=[None, 0.5]",
        "--g=linear",
        "--h=16",
        "--i",
    ]
    said = ["fit", "--a.b=null", "--c=16", "--d=1e-05", "--e=true", "--f=[null, 0.5]", "--g=linear", "--h=16", "--i"]
    assert from_agent(printed) == said


@pytest.mark.parametrize("path", sorted((ROOT / "experiments/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_passes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    file = read(path)
    assert check(file)["experiment"] == "digits/aligned"
    assert file.metric in ("val/accuracy", "val/accuracy/layer_03")
    assert path.name in path.read_text().partition("\nname:")[0], "its header tells the command"


def test_recipes_may_be_swept(tmp_path: Path) -> None:
    objectives = [str(ROOT / f"experiments/paper/objectives/{name}.yaml") for name in ("standard", "uniform")]
    parameters = {
        "model.objective.class_path": {"values": ["layersim.objectives.Alternating"]},
        "config": {"values": objectives},
    }
    file = read(write(tmp_path, parameters))
    check(file)
    words = file.command({"model.objective.class_path": "layersim.objectives.Alternating", "config": objectives[1]})
    assert words[-2:] == [
        f"--config={objectives[1]}",
        "--model.objective.class_path=layersim.objectives.Alternating",
    ], "a recipe that came later would undo what the trial sets"
    set_by = Options(file)
    assert set_by.parse({"config": objectives[1]})["model.objective.init_args.weights"] == "uniform"
    assert set_by.parse({"config": objectives[0]})["model.objective.class_path"] == "layersim.objectives.LastLayer"
    with pytest.raises(UserError, match=r"missing\.yaml"):
        check(read(write(tmp_path, {"config": {"values": [objectives[0], str(tmp_path / "missing.yaml")]}})))


def test_a_swept_recipe_stands_before_the_trials_other_flags() -> None:
    """As W&B's server orders them: by name."""
    printed = ["fit", "--config", "base.yaml", "--a=1", "--config=swept.yaml", "--model.b=2", "--c", "--d=3"]
    expected = ["fit", "--config", "base.yaml", "--config=swept.yaml", "--a=1", "--model.b=2", "--c", "--d=3"]
    assert from_agent(printed) == expected


def test_a_recipe_that_is_swept_may_be_the_only_one(tmp_path: Path) -> None:
    """What it requires and what it alone knows is there."""
    swept = {"config": {"values": [str(RECIPE)]}, "model.objective.init_args.weights": {"values": ["linear"]}}
    found = check(read(write(tmp_path, swept, command=["${program}", "fit", "${args}"])))
    assert found["experiment"] == "digits/aligned"


@pytest.mark.parametrize("is_swept", [False, True])
def test_a_checkpoint_tells_its_model_and_data(is_swept: bool, tmp_path: Path) -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    checkpoint = tmp_path / "last.ckpt"
    config = {"data": recipe["data"], "experiment": "its/own"}
    torch.save({"state_dict": {}, "hyper_parameters": recipe["model"], "layersim": {"config": config}}, checkpoint)
    swept = {"data.init_args.eval_batch_size": {"values": [8, 16]}}
    command = ["${program}", "validate", f"--ckpt_path={checkpoint}", "${args}"]
    if is_swept:
        swept |= {"ckpt_path": {"values": [str(checkpoint)]}}
        del command[2]
    assert check(read(write(tmp_path, swept, command=command)))["experiment"] == "its/own"


@pytest.mark.parametrize("name", ["my sweep.yaml", "lr=0.1.yaml"])
def test_a_name_that_no_run_may_have_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"model.optimizer.init_args.lr": {"values": [0.1]}}).rename(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: runs of a sweep .* Rename the file"):
        read(path)


def test_none_true_and_whole_floats_are_taken(tmp_path: Path) -> None:
    parameters = {
        "data.init_args.eval_batch_size": {"values": [None, 16.0]},
        "data.init_args.batch_size": {"distribution": "q_uniform", "min": 16.0, "max": 64.0, "q": 16.0},
        "model.compile": {"values": [True, False]},
        "model.objective.init_args.weights": {"values": ["linear", [0.0, 0, 0, 0, 0.5, 0.5]]},
        "model.backbone.init_args.model_args.drop_rate": {"values": [0.0, 0.1]},
        "model.optimizer.init_args.lr": {"distribution": "log_uniform_values", "min": 1e-05, "max": 1},
    }
    assert check(read(write(tmp_path, parameters)))["data.init_args.batch_size"] == 64


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("model.optmizer.init_args.lr", [0.1], "Did you mean model.optimizer.init_args.lr"),
        ("model.optimizer.init_args.lrr", [0.1], "Did you mean model.optimizer.init_args.lr"),
        ("model.optimizer.lr", [0.1], "whole flag. Did you mean model.optimizer.init_args.lr"),
        ("trainer.max_epoch", [3], "Did you mean trainer.max_epochs"),
        ("ckpt", [None], "Did you mean ckpt_path"),
        ("model.objective", ["LastLayer"], "Did you mean model.objective.class_path"),
        ("zzz", [1], "layersim fit --help"),
        ("data.init_args.batch_size", [16, 16.5], "batch_size=16.5` is refused"),
        ("model.objective.class_path", ["layersim.objectives.LastLayer", "layersim.Nothing"], "layersim.Nothing"),
    ],
)
def test_a_wrong_flag_or_value_is_told_before_any_trial(
    name: str, values: list[Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, {name: {"values": values}})
    assert main(["sweep", str(file), "--check"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == [file], "nothing is made"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gird"}, "expected method grid, random, bayes, but got 'gird'"),
        ({"metric": {"goal": "maximize"}}, "expected `metric:"),
        ({"parameters": {}}, "expected a mapping"),
        ({"parameters": {"model": {"parameters": {"lr": {"value": 1}}}}}, "whole flag"),
        ({"command": ["${program}", "${args}"]}, "verb one of fit, validate, test"),
        ({"command": ["${program}", "fit", "${args}", "--config", "x.yaml"]}, "Put it before"),
    ],
)
def test_a_file_that_is_no_sweep_of_ours_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"model.optimizer.init_args.lr": {"values": [0.1]}}, **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        read(path)
