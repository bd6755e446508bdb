"""The run's record: names are one monitor's alone."""

import math
from pathlib import Path

import pytest

from callbacks import RunRecorder, SimilarityHeatmaps
from callbacks.run_recorder import _joined
from layersim.errors import UserError
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
