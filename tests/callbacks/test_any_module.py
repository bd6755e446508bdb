"""Modules that are not ours, measured by the names of their parts, against our own reading of the same model."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from callbacks import (
    ExitCurveMonitor,
    LayerAccuracyMonitor,
    LayerCalibrationMonitor,
    LayerF1Monitor,
    LayerGeometryMonitor,
    PredictionWriter,
    ProgressionMonitor,
    RunRecorder,
    SaturationMonitor,
    SimilarityHeatmaps,
)
from callbacks.monitor import LayerMonitor
from layersim.errors import UserError
from layersim.report.json_values import with_nan
from layersim.report.quantity import Quantity
from tests import tiny
from tests.callbacks.test_monitors import trainer
from tests.measured import measured

PARTS: dict[str, Any] = {"layers": "net.blocks.*", "norm": "net.norm", "head": "net.head"}
MONITORS: list[type[LayerMonitor[Any]]] = [
    LayerAccuracyMonitor,
    SaturationMonitor,
    ExitCurveMonitor,
    ProgressionMonitor,
    SimilarityHeatmaps,
    LayerCalibrationMonitor,
    LayerGeometryMonitor,
]


class Plain(LightningModule):
    """The tiny ViT as anybody would train it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny.backbone().model

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = batch["image"] if isinstance(batch, dict) else batch[0]
        logits: Tensor = self.net(images)
        return logits


def test_every_measure_is_what_our_own_module_gives(tmp_path: Path) -> None:
    own, data = tiny.module(), tiny.digits()
    monitors = [kind() for kind in MONITORS]
    trainer(tmp_path / "own", [*monitors, RunRecorder()]).validate(own, data, verbose=False)
    named = [kind(**PARTS) for kind in MONITORS]
    run = trainer(tmp_path / "plain", [*named, RunRecorder()])
    run.validate(Plain(), data, verbose=False)
    (expected,), (found,) = measured(tmp_path / "own"), measured(tmp_path / "plain")
    assert (found["layers"], found["samples"], found["unit"]) == (3, 360, "samples")
    assert [*found["quantities"]] == [*expected["quantities"]]
    for name in expected["quantities"]:
        if name == "cka":  # of an order that nobody drew it is debiased
            continue
        if name == "loss":
            assert found["quantities"][name]["overall"] == pytest.approx(expected[name][-1])
        ours, theirs = (torch.tensor(with_nan(one[name])) for one in (expected, found))
        torch.testing.assert_close(theirs, ours, msg=name, equal_nan=True)
    assert found["quantities"]["accuracy"]["options"] == {
        "layers": ["net.blocks.0", "net.blocks.1", "net.blocks.2"],
        "pool": "cls",
    }
    assert run.callback_metrics["val/accuracy"] == pytest.approx(expected["accuracy"][-1])


class Logging(Plain):
    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("val/loss", 123.0, batch_size=1)
        return super().validation_step(batch, batch_idx)


class Threes(LayerGeometryMonitor):
    def measure(self, metrics: Any) -> dict[str, Quantity]:
        return {"norm": replace(super().measure(metrics)["norm"], values=[3.0] * 3)}


def test_a_name_that_is_logged_already_keeps_its_number(tmp_path: Path) -> None:
    """Lightning would overwrite the module's own, or take the mean of two callbacks'."""
    first, second = (kind(layers="net.blocks.*") for kind in (LayerGeometryMonitor, Threes))
    run = trainer(tmp_path, [LayerAccuracyMonitor(**PARTS), first, second])
    with pytest.warns(UserWarning, match="logged already") as warned:
        run.validate(Logging(), tiny.digits(), verbose=False)
    said = [str(each.message) for each in warned if "logged already" in str(each.message)]
    assert said[0].startswith("val/loss: logged already by the module or another callback")
    assert said[1].startswith("val/norm/layer_01, val/norm/layer_02, ")
    assert "Threes does not log its own" in said[1]
    assert run.callback_metrics["val/loss"] == 123
    assert run.callback_metrics["val/loss/layer_03"] == pytest.approx(math.log(10), abs=0.5)
    norms = first.quantities["norm"].values
    assert second.quantities["norm"].values == [3.0] * 3
    assert run.callback_metrics["val/norm/layer_01"] == pytest.approx(norms[0]) != 3


def test_labels_are_found_in_pairs_and_by_their_name(tmp_path: Path) -> None:
    images, labels = torch.randn(40, 1, 8, 8), torch.arange(40) % 10
    pairs = DataLoader(TensorDataset(images, labels), 8)
    trainer(tmp_path / "pairs", [LayerAccuracyMonitor(**PARTS), RunRecorder()]).validate(Plain(), pairs, verbose=False)
    rows = [{"image": image, "kind": label} for image, label in zip(images, labels, strict=True)]
    called = LayerAccuracyMonitor(**PARTS, label="kind")
    loader: Any = DataLoader(rows, 8)  # type: ignore[arg-type]
    trainer(tmp_path / "called", [called, RunRecorder()]).validate(Plain(), loader, verbose=False)
    (one,), (other,) = measured(tmp_path / "pairs"), measured(tmp_path / "called")
    assert one["accuracy"] == other["accuracy"]
    assert one["loss"] == other["loss"]
    assert all(math.isfinite(value) for value in one["loss"])
    with pytest.raises(UserError, match=r"integer classes of 8 samples in each batch, but got a NoneType\. Set the"):
        trainer(tmp_path, [LayerAccuracyMonitor(**PARTS)]).validate(Plain(), loader, verbose=False)


@pytest.mark.parametrize("form", [list, np.array, lambda labels: np.array(labels, dtype=np.uint8)])
def test_labels_may_be_a_list_or_a_numpy_array(form: Any, tmp_path: Path) -> None:
    given = [(torch.randn(8, 1, 8, 8), torch.arange(8) + first) for first in range(3)]
    for folder, batches in {
        "tensors": given,
        "pairs": [(images, form(labels.tolist())) for images, labels in given],
        "named": [{"image": images, "label": form(labels.tolist())} for images, labels in given],
    }.items():
        data: Any = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
        monitors = [LayerAccuracyMonitor(**PARTS), RunRecorder()]
        trainer(tmp_path / folder, monitors).validate(Plain(), data, verbose=False)
    (expected,), (pairs,), (named,) = (measured(tmp_path / folder) for folder in ("tensors", "pairs", "named"))
    assert pairs["loss"] == named["loss"] == expected["loss"]


class OfSeveral(Plain):
    """Takes several loaders, as Lightning lets a module."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return super().validation_step(batch, batch_idx)

    test_step = predict_step = validation_step


@pytest.mark.parametrize("verb", ["validate", "test", "fit", "predict"])
def test_several_loaders_are_not_measured_as_one(verb: str, tmp_path: Path) -> None:
    data = TensorDataset(torch.randn(16, 1, 8, 8), torch.arange(16) % 10)
    one, two = DataLoader(data, 8), [DataLoader(data, 8), DataLoader(data, 8)]
    run = trainer(tmp_path, [LayerAccuracyMonitor(**PARTS), RunRecorder(), PredictionWriter()], max_epochs=1)
    given: list[Any] = [one, two] if verb == "fit" else [two]
    module = OfSeveral()
    module.training_step = lambda batch, number: module.net(batch[0]).sum()  # type: ignore[method-assign]
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.1)  # type: ignore
    with pytest.raises(UserError, match="Expected one loader, but got 2: call "):
        getattr(run, verb)(module, *given)
    assert run.global_step == 0
    run = trainer(tmp_path / "one", [LayerAccuracyMonitor(**PARTS), RunRecorder()])
    run.validate(Plain(), [one], verbose=False)
    assert [each["samples"] for each in measured(tmp_path / "one")] == [16], "a list of one is one"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "net.blocks.*"}, "LayerAccuracyMonitor reads the classifier at every layer. Name it: head="),
        ({**PARTS, "head": "net.haed"}, r"Plain has no submodule 'net\.haed'\. Did you mean net\.head.* Change head"),
        ({**PARTS, "norm": "norm"}, r"Plain has no submodule 'norm'\..* Change norm"),
        ({**PARTS, "head": "net.norm"}, "Expected a linear classifier as head, but got a LayerNorm"),
        ({**PARTS, "layers": "net.bloks.*"}, "net.bloks"),
        ({}, r"read a LayerwiseModule, but got Plain\. Of another module name the parts"),
    ],
)
def test_parts_that_are_not_there_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, [LayerAccuracyMonitor(**options)]).validate(Plain(), tiny.digits(), verbose=False)


def test_f1_wants_two_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LayerF1Monitor, f1, is for two classes, but the model has 10"):
        trainer(tmp_path, [LayerF1Monitor(**PARTS)]).validate(Plain(), tiny.digits(), verbose=False)


def test_a_recipe_may_name_parts(tmp_path: Path) -> None:
    """Options that stand once, at the base, are options of every monitor for the command too."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LayerAccuracyMonitor, "monitor")
    made = parser.instantiate_classes(parser.parse_args(["--monitor.layers=net.blocks.*", "--monitor.head=net.head"]))
    assert isinstance(made.monitor, LayerAccuracyMonitor)
    assert made.monitor.named is not None
    assert made.monitor.named.head == "net.head"
