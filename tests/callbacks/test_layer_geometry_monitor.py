"""The monitor on a real trainer against the functions on all samples at once."""

from pathlib import Path

import pytest
import torch

from callbacks import LayerGeometryMonitor, RunRecorder, SimilarityHeatmaps
from layersim.errors import UserError
from layersim.metrics.geometry import directions, effective_rank, intrinsic_dimension, spread
from layersim.report.records import read_records
from layersim.similarity import CosineSimilarity
from tests import tiny
from tests.callbacks.test_monitors import trainer


def test_the_record_is_what_the_functions_give(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, data = tiny.module(), tiny.digits(eval_batch_size=55)
    monitors = [
        SimilarityHeatmaps({"cosine": CosineSimilarity(max_samples=50)}),  # shares a larger sample
        LayerGeometryMonitor(),
        LayerGeometryMonitor(max_samples=360, centering="samples"),
        RunRecorder(),
    ]
    trainer(tmp_path, monitors[:2] + monitors[3:]).validate(module, data, verbose=False)
    told = read_records(tmp_path / "layers.jsonl")[-1].quantities
    with torch.no_grad():
        outputs = [module.eval()(batch).features for batch in data.val_dataloader()]
    order = torch.cat([each.position for each in outputs if each.position is not None]).argsort()
    features = torch.cat([each.values for each in outputs], dim=1)[:, order]
    expected = {
        "mean_cosine": spread(torch.stack([directions(layer).sum(0) for layer in features]))[:, 0],
        "norm": features.double().norm(dim=2).mean(1),
        "effective_rank": effective_rank(features)[0],
        "intrinsic_dimension": intrinsic_dimension(features)[0][0],
    }
    for name, values in expected.items():
        assert told[name].values == pytest.approx(values.tolist(), rel=1e-6), name
        interval = told[name].interval or {}
        for low, value, high in zip(interval["low"], told[name].values, interval["high"], strict=True):
            assert low < value < high
    assert told["effective_rank"].options == {"centering": "none", "max_samples": 2048}
    # an untrained class token is nearly constant, and one line says so
    assert expected["mean_cosine"].min() > 0.99
    advice = [record.message for record in caplog.records if "nearly the same features" in record.message]
    assert len(advice) == 1
    assert "At layer 1, 2, 3 all samples" in advice[0]
    assert "pool=mean" not in advice[0], "which is for texts"
    trainer(tmp_path / "centred", monitors[2:]).validate(module, data, verbose=False)
    centred = read_records(tmp_path / "centred" / "layers.jsonl")[-1]
    assert centred.values("effective_rank") == pytest.approx(effective_rank(features, centering="samples")[0].tolist())
    assert min(centred.values("effective_rank")) > 2 * max(told["effective_rank"].values)


def test_options_are_refused_before_any_model_is_built() -> None:
    with pytest.raises(UserError, match="max_samples: expected at least 3, got 1"):
        LayerGeometryMonitor(max_samples=1)
    with pytest.raises(UserError, match="centering: expected one of none, samples, got 'components'"):
        LayerGeometryMonitor(centering="components")  # type: ignore[arg-type]
