"""A model of one layer goes through every verb."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny
from tests.measured import measured

FLAGS = [flag.replace("depth: 3", "depth: 1") for flag in tiny.FLAGS]


def test_a_model_of_one_layer_is_trained_measured_and_run(layersim: Callable[..., Path]) -> None:
    run = layersim("fit", *FLAGS, "--model.optimizer=AdamW", "--model.optimizer.lr=0.003")
    (line,) = measured(run)
    assert line["layers"] == 1
    (accuracy,) = line["accuracy"]
    assert 0.2 < accuracy <= 1
    assert (line["saturation"], line["saturated_early"], line["mean_saturation_layer"]) == ([360], 0, 1)
    for measure in ("cosine", "cka"):
        assert line[measure] == [[pytest.approx(1)]]
    assert {path.suffix for path in (run / "figures").iterdir()} == {".png"}
    assert (run / "report.html").is_file()

    checkpoint = f"--ckpt_path={run / 'checkpoints/last.ckpt'}"
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    (again,) = measured(layersim("validate", checkpoint, *quiet))
    assert again["accuracy"] == [accuracy]

    left = layersim("exits", checkpoint, "--risk=0.5", "--measure_speed=false", *quiet)
    found = json.loads((left / "exits.json").read_text())
    assert (found["exits"], found["mean_exit_layer"]) == ([360], 1)
    assert found["accuracy"] == found["full_accuracy"] == pytest.approx(accuracy)

    layersim("export", checkpoint, "--layers=1", "--to=exported", *quiet)
    assert (run.parents[2] / "exported/README.md").is_file()
