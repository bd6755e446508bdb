"""SimilarityHeatmaps with `null`: what chance makes, recorded and drawn, or refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from callbacks import RunRecorder, SimilarityHeatmaps
from layersim import UserError
from layersim.commands.parser import _load
from layersim.similarity import RSA, AngularDistance, CosineSimilarity, LinearCKA, StreamedCKA
from layersim.similarity.features import TooFewSamples
from tests import tiny
from tests.callbacks.test_similarity_heatmaps import Plain, Points, by_hand, records, trainer


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders")
def test_what_chance_makes_is_recorded_and_drawn(tmp_path: Path) -> None:
    """As the metrics give it for all samples at once, beside intervals, and of two processes as of one."""
    measures = {"cosine": CosineSimilarity(), "cka": LinearCKA(batch_size=16), "rsa": RSA()}
    module, data = Plain(), Points(positions=True)
    found = {}
    for processes in (1, 2):
        path = tmp_path / str(processes)
        heatmaps = SimilarityHeatmaps(measures, layers="blocks.*", null=39, confidence=0.9)
        spread = {"devices": processes, "strategy": "ddp_fork"} if processes > 1 else {}
        run = trainer(path, [heatmaps, RunRecorder()], **spread)
        run.validate(module, DataLoader(data, batch_size=30), verbose=False)
        (found[processes],) = records(path)
        assert (path / "figures" / "val-cka-epoch-0000.png").is_file()
    for name, metric in measures.items():
        metric.expect_null(39)
        metric.update(by_hand(module, data.x).float())
        expected = metric.null(39)
        for record in found.values():
            null = record.quantities[name].null or {}
            assert (null["permutations"], null["seed"]) == (39, 0)
            for part in ("p", "p_family", "calibrated"):
                ours = torch.tensor(null[part], dtype=torch.float64)
                torch.testing.assert_close(ours, getattr(expected, part), rtol=0, atol=1e-6, equal_nan=True)
            assert record.quantities[name].interval is not None
    assert SimilarityHeatmaps(null=39).make_metrics(tiny.module())["cosine"].keeps_sample


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"null": 10}, "null: expected at least 19 permutations"),
        (
            {"measures": {"angular": AngularDistance()}, "null": 99},
            "angular distance keeps no samples.*max_samples",
        ),
        ({"measures": {"cka": StreamedCKA()}, "null": 99}, "choose LinearCKA"),
    ],
)
def test_a_null_that_cannot_be_had_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, [SimilarityHeatmaps(**options)]).validate(tiny.module(), tiny.digits(), verbose=False)


def test_more_permutations_than_orders_are_refused_before_training(tmp_path: Path) -> None:
    rehearsed = SimilarityHeatmaps({"cosine": CosineSimilarity()}, null=24)
    with pytest.raises(TooFewSamples, match="4 samples have 23 other orders, got 24"):
        rehearsed.rehearse(tiny.module(), 4)
    assert rehearsed.rehearse(tiny.module(), 5) == {f"cosine_to_last/layer_{n:02d}" for n in (1, 2, 3)}


def test_in_yaml_the_option_is_quoted() -> None:
    assert _load('{class_path: SimilarityHeatmaps, init_args: {"null": 39}}')["init_args"] == {"null": 39}
    with pytest.raises(UserError, match='expected text as a name, got null: YAML takes it for nothing, write "null"'):
        _load("{class_path: SimilarityHeatmaps, init_args: {null: 39}}")
