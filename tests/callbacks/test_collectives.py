"""What an epoch's end costs two processes: as many collectives whatever is measured, and the figures of one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

from callbacks import (
    ExitCurveMonitor,
    LayerAccuracyMonitor,
    LayerCalibrationMonitor,
    LayerGeometryMonitor,
    ProgressionMonitor,
    RunRecorder,
    SaturationMonitor,
    SimilarityHeatmaps,
)
from callbacks.monitor import LayerMonitor
from layersim.backbones import TimmBackbone
from layersim.module import LayerwiseModule
from layersim.report.records import read_records
from layersim.similarity import RSA, AngularDistance, CosineSimilarity, LinearCKA, StreamedCKA
from tests import tiny
from tests.callbacks.test_monitors import trainer

FEW = {"cosine": CosineSimilarity(max_samples=100)}
MANY = FEW | {
    "cka": LinearCKA(batch_size=16),
    "debiased": LinearCKA(estimator="debiased", max_samples=300),
    "raw": CosineSimilarity(centering="none"),
    "bent": AngularDistance(),
    "rsa": RSA(max_samples=50),
    "streamed": StreamedCKA(),
}


class Counter(Callback):
    """Writes down the collectives between an evaluation's last batch and its end, of each process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_epoch_end(self, *_: Any) -> None:
        self.profile = profile(activities=[ProfilerActivity.CPU])
        self.profile.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.profile.stop()
        names = [event.name for event in self.profile.events() if event.name.startswith("gloo:")]
        torch.save(names, self.path / f"{trainer.global_rank}.pt")


def measured(path: Path, depth: int, measures: dict[str, Any], devices: int) -> tuple[list[list[str]], dict[str, Any]]:
    torch.manual_seed(0)
    model = TimmBackbone(
        "vit_tiny_patch16_224", img_size=8, in_chans=1, num_classes=10, model_args=tiny.ARCHITECTURE | {"depth": depth}
    )
    path.mkdir()
    monitors = [
        LayerAccuracyMonitor(),
        SaturationMonitor(),
        ExitCurveMonitor(),
        ProgressionMonitor(max_samples=200),
        SimilarityHeatmaps(measures),
        LayerCalibrationMonitor(),
        LayerGeometryMonitor(max_samples=200),
    ]
    strategy = "ddp_fork" if devices > 1 else "auto"
    run = trainer(path, [Counter(path), *monitors, RunRecorder()], devices=devices, strategy=strategy)
    run.validate(LayerwiseModule(model), tiny.digits(eval_batch_size=55), verbose=False)
    told = read_records(path / "layers.jsonl")[-1].quantities
    counts = [torch.load(path / f"{rank}.pt") for rank in range(devices)]
    return counts, {name: one.values for name, one in told.items()}


def test_collectives_do_not_depend_on_layers_or_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (LayerMonitor, ProgressionMonitor, SimilarityHeatmaps):
        monkeypatch.setattr(kind, "figures", lambda *_: {})  # which take longest
    (small, other), _ = measured(tmp_path / "small", 3, FEW, 2)
    (large, _), two = measured(tmp_path / "large", 6, MANY, 2)
    assert small == other == large
    # to agree on what travels, twice two; what does; sums of two dtypes; a monitor's numbers, by seven; the recorder's
    assert len(large) == 4 + 1 + 2 + 7 + 1
    _, one = measured(tmp_path / "one", 6, MANY, 1)
    assert one.keys() == two.keys()
    assert one["saturation"] == two["saturation"]
    for name, values in one.items():
        if name not in ("class_paths", "exit_curve"):
            expected = torch.tensor(values, dtype=torch.float64)
            found = torch.tensor(two[name], dtype=torch.float64)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True, msg=name)
