"""The measuring callbacks stay beside a recipe's own, until they are removed by name or configured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from layersim.commands.default_callbacks import with_defaults
from layersim.errors import UserError
from layersim.report.records import read_records
from tests import tiny

Command = Callable[..., Path]


def call(name: str, **options: Any) -> Namespace:
    return Namespace(class_path=f"somewhere.{name}", init_args=Namespace(**options))


HEATMAPS, RECORDER = call("SimilarityHeatmaps", confidence=None), call("RunRecorder")
BEST, LAST = call("ModelCheckpoint", monitor="val/accuracy"), call("ModelCheckpoint", monitor=None, filename="last")
DEFAULTS = [HEATMAPS, RECORDER, BEST, LAST]
STOP, OWN = call("EarlyStopping", monitor="val/loss"), call("SimilarityHeatmaps", confidence=0.9)


@pytest.mark.parametrize(
    ("given", "without", "expected", "replaced"),
    [
        ([], None, DEFAULTS, []),
        ([STOP], None, [*DEFAULTS, STOP], []),
        ([*DEFAULTS, STOP], None, [*DEFAULTS, STOP], []),  # `callbacks+`, or a run's own config.yaml
        ([OWN], None, [RECORDER, BEST, LAST, OWN], ["SimilarityHeatmaps"]),
        ([*DEFAULTS, OWN], None, [RECORDER, BEST, LAST, OWN], ["SimilarityHeatmaps"]),
        ([], "SimilarityHeatmaps,RunRecorder", [BEST, LAST], []),
        ([OWN], ["SimilarityHeatmaps", "ModelCheckpoint"], [RECORDER, OWN], []),
    ],
)
def test_defaults_stay_unless_removed_or_configured(
    given: list[Any], without: Any, expected: list[Any], replaced: list[str]
) -> None:
    assert with_defaults(given, DEFAULTS, without) == (expected, replaced)


@pytest.mark.parametrize(
    ("options", "replaced"),
    [
        ({"monitor": "val/loss", "mode": "min"}, []),
        ({"monitor": "val/accuracy", "save_top_k": 3}, [BEST]),
        ({"monitor": None, "filename": "mine"}, [LAST]),
        ({"monitor": None, "every_n_train_steps": 5}, []),
    ],
)
def test_a_checkpoint_gives_way_to_one_that_waits_for_the_same(options: dict[str, Any], replaced: list[Any]) -> None:
    own = call("ModelCheckpoint", **options)
    stay = [default for default in DEFAULTS if default not in replaced]
    assert with_defaults([own], DEFAULTS, None)[0] == [*stay, own]


def test_a_name_that_is_no_default_is_refused() -> None:
    with pytest.raises(UserError, match=r"names Heatmaps, .* Did you mean SimilarityHeatmaps\?"):
        with_defaults([], DEFAULTS, "Heatmaps")


def callbacks(directory: Path) -> list[str]:
    config = yaml.safe_load((directory / "config.yaml").read_text())
    return [entry["class_path"].rpartition(".")[2] for entry in config["trainer"]["callbacks"]]


@pytest.mark.parametrize("form", ["recipe", "typed", "added", "twice"])
def test_a_recipes_own_list_keeps_the_record(form: str, layersim: Command, tmp_path: Path) -> None:
    stop = "{class_path: EarlyStopping, init_args: {monitor: val/loss}}"
    (tmp_path / "own.yaml").write_text(f"trainer: {{callbacks: [{stop}]}}")
    (tmp_path / "other.yaml").write_text("trainer: {callbacks: []}")
    flags = {
        "recipe": ["--config=own.yaml"],
        "typed": [f"--trainer.callbacks=[{stop}]"],
        "added": [f"--trainer.callbacks+={stop}"],
        "twice": ["--config=other.yaml", "--config=own.yaml"],
    }[form]
    directory = layersim("fit", *tiny.FLAGS, "--trainer.limit_train_batches=2", *flags)
    assert (directory / "layers.jsonl").is_file()
    assert list(directory.glob("figures/val-cka-*.png"))
    assert len(list(directory.glob("checkpoints/*.ckpt"))) == 2
    names = callbacks(directory)
    assert names.count("EarlyStopping") == 1
    assert names.count("RunRecorder") == 1


def test_what_is_configured_stands_once_and_what_is_removed_not_at_all(
    layersim: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "own.yaml").write_text(
        "without: [ExitCurveMonitor, ReportWriter]\n"
        "trainer: {callbacks: [{class_path: callbacks.SimilarityHeatmaps, init_args: {confidence: 0.9}}]}"
    )
    flags = [*tiny.FLAGS, "--trainer.limit_train_batches=2", "--config=own.yaml"]
    directory = layersim("fit", *flags)
    names = callbacks(directory)
    assert names.count("SimilarityHeatmaps") == 1
    assert not {"ExitCurveMonitor", "ReportWriter"} & set(names)
    interval = read_records(directory / "layers.jsonl")[-1].quantities["cka"].interval
    assert interval is not None
    assert interval["confidence"] == 0.9
    assert "own SimilarityHeatmaps stands for the default one" in caplog.text
    again = layersim("fit", f"--config={directory}/config.yaml", "--trainer.default_root_dir=again")
    assert callbacks(again) == names, "a run's configuration is its own"
