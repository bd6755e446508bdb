"""What others hand over where they build on layersim: in any form that means the same, or refused in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks import ProgressionMonitor, RunRecorder
from callbacks.monitor import LayerMonitor
from layersim import Head, LayerwiseModule, Measure, Objective, Split, SplitDataModule, UserError
from layersim.commands import given_data
from layersim.evaluation import evaluate
from layersim.heads import LinearProbes
from layersim.metrics import LayerAccuracy
from layersim.objectives.reading import Reading
from layersim.report.figures import figures_of
from layersim.report.page.charts import charts, drawn_record
from layersim.report.quantity import LAYER, Quantity, curve
from layersim.report.records import LayerRecord
from layersim.similarity.measure import as_measures
from tests import tiny
from tests.test_own_backbone import EncoderBackbone


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return Trainer(
        default_root_dir=folder, max_epochs=1, limit_train_batches=2, limit_val_batches=1, **quiet, **options
    )


def batch(label: Any) -> dict[str, Any]:
    return {"image": torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), "label": label}


@pytest.mark.parametrize(
    "form", [torch.tensor, list, np.array, lambda one: torch.tensor(one, dtype=torch.uint8), lambda one: np.int32(one)]
)
def test_labels_are_whole_numbers_of_any_kind(form: Callable[[list[int]], Any]) -> None:
    given, module = [0, 9, 3, 4], tiny.module()
    expected = module(batch(torch.tensor(given)))
    found = module(batch(form(given)))
    assert torch.equal(found.features.targets, torch.tensor(given))
    assert torch.equal(found.loss, expected.loss)


@pytest.mark.parametrize(
    ("label", "came"),
    [
        (torch.tensor([0, 1, 2, 10]), r"torch\.int64 of shape \(4,\), 0 … 10\.$"),
        (torch.tensor([-1, 1, 2, 3]), r"torch\.int64 of shape \(4,\), -1 … 3\.$"),
        (torch.tensor([0.0, 1.0, 2.0, 3.0]), r"torch\.float32 of shape \(4,\)"),
        (torch.tensor([[0], [1], [2], [3]]), r"torch\.int64 of shape \(4, 1\)"),
        (torch.eye(10, dtype=torch.int64)[:4], r"torch\.int64 of shape \(4, 10\)"),
        (torch.tensor([0, 1, 2]), r"torch\.int64 of shape \(3,\), 0 … 2\.$"),
        (["a", "b", "c", "d"], "'a'"),
    ],
)
def test_what_is_no_class_is_refused(label: Any, came: str) -> None:
    with pytest.raises(UserError, match=rf"Expected (a label in|labels as integers) 0 … 9.*, but got {came}"):
        tiny.module()(batch(label))


def test_truth_values_and_unsigned_numbers_are_classes() -> None:
    for label in (torch.tensor([True, False, True, True]), torch.tensor([1, 0, 1, 1], dtype=torch.uint16)):
        assert tiny.module()(batch(label)).features.targets.tolist() == [1, 0, 1, 1]


def test_features_are_read_whatever_the_labels_are() -> None:
    """As those of other data's classes, or of a regression, which no head reads."""
    backbone = tiny.backbone()
    for label in (torch.tensor([0, 1, 2, 999]), torch.rand(4), torch.rand(4, 3), ["a", "b", "c", "d"]):
        assert torch.equal(backbone(batch(label)).values, backbone(batch(None)).values)


def test_learned_weights_in_a_list_learn_as_in_a_tensor() -> None:
    def gradient(weigh: Callable[[list[Tensor]], Any]) -> float:
        gate = torch.zeros((), requires_grad=True)
        features, targets = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4)
        read = Reading(tiny.module().head, features, targets, [0, 1, 2], 3)
        read.loss(weigh([gate.sigmoid(), 1 - gate.sigmoid(), torch.tensor(1.0)])).backward()
        assert gate.grad is not None
        return float(gate.grad)

    assert gradient(list) == gradient(torch.stack) != 0
    assert gradient(lambda weights: [*weights[:2], 1]) == gradient(torch.stack)


class Two(Objective):
    asked: Any = (0, 2)
    gives: Any = staticmethod(lambda read: read.losses.sum())

    def layers(self, num_layers: int, step: Any) -> Any:
        return self.asked

    def forward(self, read: Reading) -> Any:
        return self.gives(read)


@pytest.mark.parametrize("asked", [(0, 2), range(0, 3, 2), np.array([0, 2]), torch.tensor([0, 2])])
def test_layers_are_asked_for_by_any_sequence(asked: Any, tmp_path: Path) -> None:
    objective = Two()
    objective.asked = asked
    assert objective.checked_layers(3, None) == [0, 2]
    assert objective.choices(3) == [[0, 2]]
    trainer(tmp_path).fit(LayerwiseModule(tiny.backbone(), objective), tiny.digits())


@pytest.mark.parametrize(
    ("gives", "came"),
    [(lambda read: 0.0, "float"), (lambda read: None, "NoneType"), (lambda read: read.losses, r"one of shape \(2,\)")],
)
def test_what_is_no_loss_is_refused_in_evaluation_too(gives: Any, came: str) -> None:
    objective = Two()
    objective.gives = gives
    with pytest.raises(UserError, match=rf"Expected a loss of shape \(\) from Two, but got {came}"):
        LayerwiseModule(tiny.backbone(), objective)(batch(torch.arange(4)))


class Odd(Head):
    gives: Any = None

    def logits(self, features: Tensor, layers: Any) -> Any:
        return self.gives(features)


@pytest.mark.parametrize(
    ("gives", "came"),
    [
        (lambda x: x.new_zeros(*x.shape[:2], 20), r"\(1, 4, 20\)"),
        (lambda x: x.new_zeros(x.shape[1], 10), r"\(4, 10\)"),
        (lambda x: None, "a NoneType"),
    ],
)
def test_logits_of_another_shape_are_refused(gives: Any, came: str) -> None:
    head = Odd(tiny.backbone())
    head.gives = gives
    with pytest.raises(UserError, match=r"Expected logits \(1, 4, 10\) from Odd, \(K, N, C\), but got " + came):
        head(torch.randn(1, 4, 16), torch.arange(4), [0])
    with pytest.raises(UserError, match="Expected logits"):
        head.losses(torch.randn(1, 4, 16), torch.arange(4), [0])


def test_a_measure_that_lacks_something_is_told() -> None:
    class Half(Measure):
        label = "half"

    with pytest.raises(UserError, match=r"Half does not say its value_range, function \(see layersim\.Measure\)"):
        as_measures({"half": Half()})


class Pictures(Split):
    def inputs(self, place: int) -> dict[str, Any]:
        return {"image": torch.randn(1, 8, 8)}


class Data(SplitDataModule):
    def __init__(self, index: Any, labels: Any, roles: tuple[str, ...] = ("train", "val")) -> None:
        super().__init__(batch_size=8)
        self.given = {role: Pictures("own", index, labels, seed=0) for role in roles}

    def load(self) -> dict[str, Split]:
        return self.given


def test_a_splits_index_and_labels_are_any_sequences(tmp_path: Path) -> None:
    trainer(tmp_path).fit(tiny.module(), Data(range(16), [place % 10 for place in range(16)]))


def test_a_split_that_is_not_given_is_told(tmp_path: Path) -> None:
    data = Data(range(16), None, ("train", "validation"))
    with pytest.raises(UserError, match="there is no val data: `load` gives train, validation"):
        trainer(tmp_path).validate(tiny.module(), data)


@pytest.mark.parametrize("given", [None, [], {"train": [1, 2]}])
def test_splits_that_are_none_are_told(given: Any, tmp_path: Path) -> None:
    data = Data(range(16), None)
    data.given = given
    with pytest.raises(UserError, match=r"Expected a Split by its role, train and val, from Data\.load"):
        trainer(tmp_path).validate(tiny.module(), data)


def test_inputs_without_names_are_told() -> None:
    split = Pictures("own", range(16), None, seed=0)
    split.inputs = lambda place: torch.zeros(1, 8, 8)  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(UserError, match=r"by its names, such as image, from Pictures\.inputs, but got a Tensor"):
        split[0]


def test_a_training_on_its_own_validation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    data, said = Data(range(16), [place % 10 for place in range(16)]), list[str]()
    data.given["val"] = Pictures("own", range(10, 20), [place % 10 for place in range(10)], seed=0)
    data.setup()
    monkeypatch.setattr(given_data, "rank_zero_info", said.append)
    given_data.check_unseen("fit", {}, data, {"data": {}})
    assert said == ["6 of 10 samples of val are in train too: what is measured on them says nothing of new ones."]


def test_what_is_too_large_for_a_picture_is_recorded_alone() -> None:
    """A cell each of a million would end the process that draws."""
    large = Quantity(values=np.zeros((3, 40_000)), axes=(LAYER, "sample"))
    found = {"small": curve([1, 2, 3]), "large": large}
    with pytest.warns(UserWarning, match="large has more than 100,000 values: it is recorded, and not drawn"):
        assert [*figures_of(found)] == ["small"]
    record = LayerRecord(epoch=0, step=0, stage="validate", layers=3, samples=9, quantities=found)
    assert {name for chart in charts([record]) for name in chart["keys"]} == {"small"}
    assert [*drawn_record(record)["quantities"]] == ["small"]
    assert LayerRecord.from_line(record.to_line()) == record


class Measuring(LayerMonitor[Any]):
    gives: Any = None

    def make_metrics(self, num_layers: int, num_classes: int) -> dict[str, Any]:
        return {}

    def update(self, metrics: Any, output: Any) -> None: ...

    def measure(self, metrics: Any) -> Any:
        return self.gives


@pytest.mark.parametrize("gives", [None, {"n": [1.0, 2.0, 3.0]}, {"n": torch.ones(3)}, [curve([1.0, 2.0, 3.0])]])
def test_a_monitor_that_gives_no_quantities_is_told(gives: Any) -> None:
    monitor = Measuring()
    monitor.gives = gives
    with pytest.raises(UserError, match="Expected a Quantity by its name from `measure` of Measuring, got "):
        monitor.measured({}, {}, 3)


@pytest.mark.parametrize("features", ["raw", "normed"])
def test_probes_of_a_model_whose_classifier_is_no_linear_map_are_measured(features: Any, tmp_path: Path) -> None:
    backbone = EncoderBackbone()
    backbone.model.head = nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 10))
    monitor = ProgressionMonitor()
    module = LayerwiseModule(backbone, head=lambda own: LinearProbes(own, features))
    trainer(tmp_path, callbacks=[monitor, RunRecorder()]).fit(module, tiny.digits())
    assert monitor.quantities


def test_batches_without_names_are_told_wherever_a_module_reads(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(torch.randn(4, 1, 8, 8), torch.arange(4)), batch_size=2)
    for read in (
        lambda: evaluate(tiny.module(), loader, LayerAccuracy(3)),
        lambda: trainer(tmp_path).predict(tiny.module(), loader),
    ):
        with pytest.raises(UserError, match="Expected a batch as a mapping, as the model takes it, but got a list"):
            read()


def test_features_that_are_not_one_row_a_sample_are_told() -> None:
    class Whole(EncoderBackbone):
        def pool(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
            return tokens

    with pytest.raises(
        UserError, match=r"Expected features \(N, D\) .* got \[\(4, 16, 16\)\]\. Change `pool` of Whole"
    ):
        Whole()(batch(None))
