"""F1 of every layer: against scikit-learn, on any split, and as the monitor logs it."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch import Trainer
from sklearn.metrics import f1_score
from torch import Tensor

from callbacks import LayerF1Monitor
from layersim.errors import UserError
from layersim.metrics import LayerF1
from layersim.module import LayerwiseModule
from layersim.outputs import LayerFeatures, LayerOutput, Readout
from tests import tiny

generator = torch.Generator().manual_seed(0)
TARGETS = (torch.rand(101, generator=generator) < 0.3).long()
PREDICTIONS = torch.stack([(torch.rand(101, generator=generator) < share).long() for share in (0.1, 0.5, 0.9)])


def output(predictions: Tensor, targets: Tensor) -> LayerOutput:
    layers, samples = predictions.shape
    return LayerOutput(
        LayerFeatures(torch.zeros(layers, samples, 2), targets),
        Readout(torch.zeros(layers), predictions, torch.ones(layers, samples), torch.empty(0), torch.empty(0)),
    )


def measured(predictions: Tensor, targets: Tensor, batch: int, positive: int = 1) -> list[float]:
    metric = LayerF1(len(predictions), positive)
    for rows in torch.arange(len(targets)).split(batch):
        metric.update(output(predictions[:, rows], targets[rows]))
    return metric.compute().tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("positive", [0, 1])
def test_f1_is_scikit_learns_whatever_the_batches(positive: int) -> None:
    expected = [f1_score(TARGETS, layer, pos_label=positive) for layer in PREDICTIONS]
    for batch in (1, 10, 101):
        assert measured(PREDICTIONS, TARGETS, batch, positive) == pytest.approx(expected, abs=1e-15)
    parts = torch.tensor([measured(PREDICTIONS[:, rows], TARGETS[rows], 101) for rows in torch.arange(101).split(10)])
    assert parts.mean(dim=0).tolist() != pytest.approx(expected, abs=1e-3), "the control: F1 is no mean over batches"


def test_f1_by_hand() -> None:
    targets = torch.tensor([1, 1, 1, 0, 0])
    predictions = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    assert measured(predictions, targets, 2) == pytest.approx([2 / 3, 0.0])


def test_without_any_positive_there_is_no_f1() -> None:
    nothing, something = measured(torch.tensor([[0, 0], [0, 1]]), torch.tensor([0, 0]), 2)
    assert nothing != nothing
    assert something == 0


def of_a_process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    metric = LayerF1(3)
    rows = [torch.arange(37), torch.arange(37, 101)][rank]
    metric.update(output(PREDICTIONS[:, rows], TARGETS[rows]))
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    mp.start_processes(of_a_process, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt").tolist() == measured(PREDICTIONS, TARGETS, 101)


def trainer(path: Path, monitor: LayerF1Monitor) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(default_root_dir=path, accelerator="cpu", logger=False, callbacks=[monitor], **quiet)


def test_the_monitor_logs_every_layer(tmp_path: Path) -> None:
    """Digits told to be odd or even, by an untrained model, against scikit-learn on all of them at once."""
    data = tiny.digits(eval_batch_size=50)
    data.setup()
    for split in data.splits.values():
        split.labels = split.labels % 2
    module = LayerwiseModule(tiny.backbone(num_classes=2))
    running = trainer(tmp_path, LayerF1Monitor())
    running.validate(module, data, verbose=False)
    with torch.no_grad():
        read = [(module.eval()(batch).readout.predictions, batch["label"]) for batch in data.val_dataloader()]
    predictions, labels = torch.cat([part for part, _ in read], dim=1), torch.cat([part for _, part in read])
    logged = running.callback_metrics
    for number, layer in enumerate(predictions, start=1):
        assert logged[f"val/f1/layer_{number:02d}"].item() == pytest.approx(f1_score(labels, layer), abs=1e-6)
    assert logged["val/f1"] == logged["val/f1/layer_03"]


def test_more_than_two_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="for two classes, but the model has 10"):
        trainer(tmp_path, LayerF1Monitor()).validate(tiny.module(), tiny.digits(), verbose=False)
    with pytest.raises(UserError, match="positive 0 or 1"):
        LayerF1Monitor(positive=2)
