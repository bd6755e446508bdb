"""The run's record: names are one monitor's alone."""

import math
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from callbacks import LayerAccuracyMonitor, RunRecorder, SimilarityHeatmaps
from callbacks.run_recorder import _joined
from layersim.errors import UserError
from layersim.report.records import RECORDS_FILE, read_records
from layersim.similarity import LinearCKA
from tests import tiny
from tests.callbacks.test_monitors import trainer


def test_one_name_for_two_monitors_is_refused_before_training(tmp_path: Path) -> None:
    module = tiny.module()
    two = [SimilarityHeatmaps(), SimilarityHeatmaps({"cka": LinearCKA(estimator="debiased")})]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UserError, match="Two SimilarityHeatmaps measure cka, but a run's record holds one"):
        trainer(tmp_path, [*two, RunRecorder()], max_epochs=1).fit(module, tiny.digits())
    assert all(value.equal(before[name]) for name, value in module.state_dict().items()), "nothing was trained"


def test_the_same_value_twice_is_one_and_nan_is_itself() -> None:
    similarity = {"similarity": {"cka": [[1.0, math.nan], [math.nan, 1.0]]}, "samples": 4}
    again = {"similarity": {"cka": [[1.0, float("nan")], [float("nan"), 1.0]]}, "samples": 5}
    assert _joined(similarity, again) == again
    for other in ([[1.0, 0.5], [0.5, 1.0]], [[1.0, math.nan]], math.nan):
        with pytest.raises(UserError, match="Two callbacks measured cka"):
            _joined(similarity, {"similarity": {"cka": other}})


def test_a_script_that_runs_again_gets_a_directory_of_its_own(tmp_path: Path) -> None:
    def lines(folder: Path) -> list[str]:
        return [f"{record.stage} {record.epoch}" for record in read_records(folder / RECORDS_FILE)]

    def run(**options: Any) -> Trainer:
        made = trainer(tmp_path, [LayerAccuracyMonitor(), RunRecorder()], limit_train_batches=1, **options)
        made.fit(tiny.module(), tiny.digits())
        return made

    first = run(max_epochs=1)
    first.validate(tiny.module(), tiny.digits(), verbose=False)
    assert lines(tmp_path) == ["validate 0", "validate 1"], "one trainer, one run"
    second = run(max_epochs=2)
    own = Path(second.default_root_dir)
    assert own.parent == tmp_path
    assert lines(own) == ["validate 0", "validate 1"]
    assert (own / "figures" / "val-layer_accuracy-epoch-0001.png").is_file()
    assert lines(tmp_path) == ["validate 0", "validate 1"], "the first is as it was"
    second.save_checkpoint(own / "last.ckpt")
    resumed = trainer(own, [LayerAccuracyMonitor(), RunRecorder()], limit_train_batches=1, max_epochs=3)
    resumed.fit(tiny.module(), tiny.digits(), ckpt_path=own / "last.ckpt")
    assert lines(Path(resumed.default_root_dir)) == ["validate 0", "validate 1", "validate 2"], "the whole training"
    assert lines(own) == ["validate 0", "validate 1"]
