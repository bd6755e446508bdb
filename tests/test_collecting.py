"""What is collected for exits is read as the run's own steps read."""

from pathlib import Path

import pytest
import torch

from callbacks import LayerAccuracyMonitor
from layersim.trainer import LayerwiseTrainer
from tests import tiny


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.filterwarnings("ignore:The best temperature lies at or beyond its bounds")  # of a model that knows nothing
def test_exits_are_calibrated_in_the_runs_precision(precision: str, share: float, tmp_path: Path) -> None:
    module, data, monitor = tiny.module(), tiny.digits(), LayerAccuracyMonitor()
    trainer = LayerwiseTrainer(
        default_root_dir=tmp_path,
        callbacks=[monitor],
        logger=False,
        precision=precision,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    seen: list[torch.dtype] = []
    module.head.classifier.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    report = trainer.exits(module, data, budget=0.5, temperature_share=share, measure_speed=False)
    assert report.temperatures is None or len(report.temperatures) == 3
    assert set(seen[-3:]) == {torch.float32 if precision == "32-true" else torch.bfloat16}
    if not share:  # else calibrated on a part of the samples
        assert report.full_accuracy == monitor.record["accuracy"][-1]
