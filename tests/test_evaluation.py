"""One pass over data; what is collected for exits is read as the run's own steps read."""

import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from callbacks import LayerAccuracyMonitor
from layersim.commands.collecting import Tables, evaluate_epoch, quiet_trainer
from layersim.commands.exits import calibrate_exits
from layersim.commands.export import export_model
from layersim.evaluation import evaluate
from layersim.exits import Confidence, exit_table, fit_temperatures, split_for_temperatures
from layersim.metrics import LayerAccuracy, LayerLoss
from layersim.outputs import LayerFeatures, LayerOutput
from tests import tiny


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.filterwarnings("ignore:The best temperature lies at or beyond its bounds")  # of a model that knows nothing
def test_exits_are_calibrated_in_the_runs_precision(precision: str, share: float, tmp_path: Path) -> None:
    module, data, monitor = tiny.module(), tiny.digits(), LayerAccuracyMonitor()
    trainer = Trainer(
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
    forwards: list[int] = []
    module.backbone.register_forward_hook(lambda *call: forwards.append(len(call[1][0]["label"])))
    report = calibrate_exits(module, data, trainer, budget=0.5, temperature_share=share, measure_speed=False)
    assert sum(forwards) == 360, "the data are read once, whatever is fitted on them first"
    assert report.temperatures is None or len(report.temperatures) == 3
    assert set(seen[-3:]) == {torch.float32 if precision == "32-true" else torch.bfloat16}
    if not share:  # else calibrated on a part of the samples
        assert report.full_accuracy == monitor.quantities["accuracy"].values[-1]


def test_temperatures_and_table_are_those_of_their_own_samples() -> None:
    """As two readings of the data would have them: one for the temperatures, then one for the table."""
    module, data = tiny.module().eval(), tiny.digits(eval_batch_size=100)
    data.setup()
    fitted, others = split_for_temperatures(360, 0.3, seed=3)
    with torch.no_grad():
        batches = [module(batch).features for batch in data.val_dataloader()]
    values, targets = torch.cat([one.values for one in batches], dim=1), torch.cat([one.targets for one in batches])
    place = torch.cat([one.position for one in batches]).argsort()
    values, targets = values[:, place], targets[place]
    trainer = quiet_trainer()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The best temperature lies at or beyond")
        tables = Tables(module.head, Confidence(), fitted, nullcontext)
        ((found, temperatures),) = evaluate_epoch(trainer, module, data, tables)
        expected = fit_temperatures(module.head, LayerFeatures(values[:, fitted], targets[fitted]))
    assert temperatures is not None
    assert torch.equal(temperatures, expected)
    table = exit_table(module.head, LayerFeatures(values[:, others], targets[others]), Confidence(), expected)
    assert torch.equal(found.predictions, table.predictions)
    assert torch.equal(found.targets, table.targets)
    torch.testing.assert_close(found.scores, table.scores, rtol=1e-6, atol=0)


def test_a_pass_gives_metrics_the_same_numbers_as_by_hand_and_leaves_the_module_as_it_was() -> None:
    """Of every batch size; whatever has `update` and `compute` may collect."""

    class Seen:
        def __init__(self) -> None:
            self.modes: list[bool] = []

        def update(self, output: LayerOutput) -> None:
            assert not output.features.values.requires_grad
            self.modes.append(module.training)

        def compute(self) -> int:
            return len(self.modes)

    module = tiny.module().train()
    data = tiny.digits(eval_batch_size=50)
    data.check(module.backbone)
    accuracy, (losses, _), batches = evaluate(
        module, data.val_dataloader(), LayerAccuracy(3), LayerLoss(3), seen := Seen()
    )
    assert module.training
    assert batches == 8
    assert not any(seen.modes)
    module.eval()
    whole = data.collate([data.splits["val"][place] for place in range(360)])
    with torch.no_grad():
        output = module(whole)
    assert torch.equal(accuracy, (output.readout.predictions == whole["label"]).double().mean(dim=1))
    torch.testing.assert_close(losses, output.readout.losses.double(), rtol=1e-6, atol=0)


def test_exits_and_export_are_functions(tmp_path: Path) -> None:
    """Without a trainer nothing is written but what was asked for."""
    module, data = tiny.module(), tiny.digits()
    report = calibrate_exits(module, data, budget=0.5, measure_speed=False)
    assert report.samples == 360
    assert report.mean_exit_layer <= 1.5
    path = export_model(module, data, tmp_path / "cut", tolerance=1.0)
    assert [one.name for one in tmp_path.iterdir()] == ["cut"]
    assert path.parent == tmp_path or path == tmp_path / "cut"
