"""SimilarityHeatmaps on modules that are not ours: values by hand in float64, two processes against one."""

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import CosineSimilarity as TorchmetricsCosine
from torchmetrics import MeanSquaredError

from callbacks import EpochSimilarity, LayerAccuracyMonitor, RunRecorder, SimilarityHeatmaps, tapped_module
from callbacks.tapped_module import Named, TappedModule
from layersim import LayerwiseModule, UserError
from layersim.data.samplers import EvaluationSampler
from layersim.report.records import LayerRecord, read_records
from layersim.similarity import CosineSimilarity, LinearCKA, cosine, linear_cka
from tests import tiny
from tests.backbones import tiny_transformers

SAMPLES = 150


class Points(Dataset[dict[str, Tensor]]):
    """Points in a plane, their quadrant, and, where asked for, their position."""

    def __init__(self, *, positions: bool = False, samples: int = SAMPLES) -> None:
        self.x = torch.randn(samples, 2, generator=torch.Generator().manual_seed(0))
        self.positions = positions

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        x = self.x[place]
        sample = {"x": x, "y": (x > 0).long() @ torch.tensor([2, 1])}
        return sample | {"position": torch.tensor(place)} if self.positions else sample


class Plain(LightningModule):
    """A classifier as its author would write it; its evaluation steps return nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(2 if k == 0 else 8, 8), nn.Tanh()) for k in range(3)])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch["x"]), batch["y"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch["x"])

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(path: Path, callbacks: list[Any], **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"logger": False, "accelerator": "cpu", **quiet, **options}
    return Trainer(default_root_dir=path, callbacks=callbacks, **options)


def records(path: Path) -> list[LayerRecord]:
    return read_records(path / "layers.jsonl")


def by_hand(module: Plain, x: Tensor) -> Tensor:
    """(3, N, 8) in float64."""
    features = []
    for block in module.blocks:
        weight, bias = (parameter.detach().double() for parameter in block[0].parameters())
        x = torch.tanh(x.double() @ weight.T + bias)
        features.append(x)
    return torch.stack(features)


def found(record: LayerRecord, name: str) -> Tensor:
    return torch.tensor(record.values(name), dtype=torch.float64)


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_a_plain_classifier_is_measured_while_it_trains(tmp_path: Path) -> None:
    module, data = Plain(), Points()
    callbacks = [SimilarityHeatmaps(layers="blocks.*"), RunRecorder()]
    run = trainer(tmp_path, callbacks, max_epochs=1)
    run.fit(module, DataLoader(data, 50), DataLoader(data, 40))
    run.test(module, DataLoader(data, 64), verbose=False)
    validated, tested = records(tmp_path)
    assert (validated.epoch, validated.step, validated.stage, tested.stage) == (0, 3, "validate", "test")
    features = by_hand(module, data.x)
    for record in (validated, tested):
        assert (record.layers, record.samples) == (3, SAMPLES)
        torch.testing.assert_close(found(record, "cosine"), cosine(features), rtol=0, atol=1e-6)
        torch.testing.assert_close(found(record, "cka"), linear_cka(features, estimator="debiased"), rtol=0, atol=1e-6)
        read = {"order": "as read", "layers": ["blocks.0", "blocks.1", "blocks.2"], "pool": "cls"}
        assert record.quantities["cosine"].options == {"centering": "samples", "max_samples": 4096} | read
    untrained = cosine(by_hand(Plain(), data.x))
    assert (found(validated, "cosine") - untrained).abs().max() > 1e-3, "the control: training changed it"
    assert run.callback_metrics["test/cosine_to_last/layer_01"] == pytest.approx(tested.values("cosine")[0][2])
    assert (tmp_path / "figures" / "val-cka-epoch-0000.png").is_file()
    assert hooks(module) == 0


def test_our_own_module_can_be_tapped_beside_its_own_measurements(tmp_path: Path) -> None:
    """The blocks' [CLS] tokens are its layers, so that both callbacks must find the same."""
    tapped = {"tapped": CosineSimilarity(), "tapped cka": LinearCKA()}
    callbacks = [
        SimilarityHeatmaps({"cosine": CosineSimilarity(), "cka": LinearCKA()}),
        SimilarityHeatmaps(tapped, layers="backbone.model.blocks.*"),
        LayerAccuracyMonitor(),
        RunRecorder(),
    ]
    trainer(tmp_path, callbacks).validate(tiny.module(), tiny.digits(eval_batch_size=55), verbose=False)
    (record,) = records(tmp_path)
    assert (record.layers, record.samples, len(record.values("accuracy"))) == (3, 360, 3)
    assert set(record.matrices) == {"cosine", "cka", "tapped", "tapped cka"}
    assert record.values("tapped") == record.values("cosine")
    assert record.values("tapped cka") == record.values("cka")


def test_what_other_callbacks_run_is_not_measured(tmp_path: Path) -> None:
    class Runs(Callback):
        def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            pl_module(torch.zeros(7, 2))

    module, data = Plain(), Points()
    trainer(tmp_path, [SimilarityHeatmaps(layers="blocks.*"), Runs(), RunRecorder()]).validate(
        module, DataLoader(data, 40), verbose=False
    )
    (record,) = records(tmp_path)
    assert record.samples == SAMPLES
    torch.testing.assert_close(found(record, "cosine"), cosine(by_hand(module, data.x)), rtol=0, atol=1e-6)


def test_a_function_pools_and_is_recorded_by_name(tmp_path: Path) -> None:
    def halved(features: Tensor) -> Tensor:
        return features[:, :4]

    module, data = Plain(), Points()
    callbacks = [SimilarityHeatmaps({"cosine": CosineSimilarity()}, layers="blocks.*", pool=halved), RunRecorder()]
    trainer(tmp_path, callbacks).validate(module, DataLoader(data, 50), verbose=False)
    (record,) = records(tmp_path)
    torch.testing.assert_close(found(record, "cosine"), cosine(by_hand(module, data.x)[..., :4]), rtol=0, atol=1e-6)
    assert record.quantities["cosine"].options["pool"] == "halved"


def test_hooks_are_gone_after_an_error_in_the_step(tmp_path: Path) -> None:
    class Failing(Plain):
        hooks = 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.hooks = hooks(self)
            raise ZeroDivisionError

    module = Failing()
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, [SimilarityHeatmaps(layers="blocks.*")]).validate(module, DataLoader(Points(), 50))
    assert module.hooks == 5, "the control: they were there"
    assert hooks(module) == 0


def test_a_layer_that_is_not_finite_is_nan_and_named(tmp_path: Path) -> None:
    module = Plain()
    nn.init.constant_(module.blocks[2][0].bias, torch.inf)
    module.blocks[2][1] = nn.ReLU()
    callbacks = [SimilarityHeatmaps(layers="blocks.*"), RunRecorder()]
    with pytest.warns(UserWarning, match=r"similarity is NaN for layer 3 \(counted from 1\)"):
        trainer(tmp_path, callbacks).validate(module, DataLoader(Points(), 50), verbose=False)
    for quantity in records(tmp_path)[0].matrices.values():
        assert [[math.isnan(value) for value in row] for row in quantity.values] == [[False, False, True]] * 2 + [
            [True] * 3
        ]


class Dealt(LightningDataModule):
    """Whole batches of 40, 40, 40 and 30, dealt out to the processes as layersim's own data are."""

    def __init__(self, data: Points) -> None:
        super().__init__()
        self.data = data

    def val_dataloader(self) -> Any:
        return DataLoader(self.data, 40, sampler=EvaluationSampler(self.data, 40))


def validate(path: Path, data: Any, processes: int) -> LayerRecord:
    measures = {"cosine": CosineSimilarity(), "cka": LinearCKA(batch_size=16)}
    callbacks = [SimilarityHeatmaps(measures, layers="blocks.*"), RunRecorder()]
    spread = {"devices": processes, "strategy": "ddp_fork"} if processes > 1 else {}
    trainer(path, callbacks, **spread).validate(Plain(), data, verbose=False)
    (record,) = records(path)
    return record


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders")
@pytest.mark.filterwarnings("ignore:The batches have no")  # a warning is no error in the child processes
def test_two_processes_equal_one(tmp_path: Path) -> None:
    with_positions = Points(positions=True)
    one = validate(tmp_path / "one", DataLoader(with_positions, 50), 1)
    taking_turns = validate(tmp_path / "turns", DataLoader(with_positions, 50), 2)
    dealt = validate(tmp_path / "dealt", Dealt(with_positions), 2)
    for two in (taking_turns, dealt):
        assert two.samples == one.samples == SAMPLES
        for name in ("cosine", "cka"):
            torch.testing.assert_close(found(two, name), found(one, name), rtol=0, atol=1e-9)
    numbered = validate(tmp_path / "numbered", DataLoader(Points(), 50), 2)
    torch.testing.assert_close(found(numbered, "cosine"), found(one, "cosine"), rtol=0, atol=1e-6)
    assert (found(numbered, "cka") - found(one, "cka")).abs().max() > 1e-5, "each process has its own groups"


def test_without_positions_several_processes_are_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Plain()
    tapped = TappedModule(module, Named(layers="blocks.*"))
    batch = next(iter(DataLoader(Points(positions=True), 10)))
    unnumbered = {"x": batch["x"]}
    for processes in (1, 2):
        monkeypatch.setattr(tapped_module, "processes", lambda count=processes: count)
        tapped.tap.open()
        module(batch["x"])
        read = tapped.read(batch)
        assert read is not None
        assert torch.equal(read.features.position, torch.arange(10))  # type: ignore[arg-type]
        torch.testing.assert_close(read.features.values, by_hand(module, batch["x"]).float())
        tapped.tap.open()
        module(batch["x"])
        warned = pytest.warns(UserWarning, match='no "position"') if processes > 1 else contextlib.nullcontext()
        with warned:
            read = tapped.read(unnumbered)
        assert read is not None
        assert read.features.position is None


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    loader = DataLoader(Points(), 50)
    for callback, message in {
        SimilarityHeatmaps(): r'LayerwiseModule, but got Plain.*layers="net\.blocks\.\*"',
        LayerAccuracyMonitor(): "LayerwiseModule, but got Plain",
        RunRecorder(): "LayerwiseModule, but got Plain",
        SimilarityHeatmaps(layers="model.blocks.*"): r'no submodule matches "model.blocks.\*".* Did you mean blocks.\*',
        SimilarityHeatmaps(layers=["blocks.*", "head"]): "layers of one width, but .* head has 4",
    }.items():
        with pytest.raises(UserError, match=message):
            trainer(tmp_path, [callback]).validate(Plain(), loader, verbose=False)
    with pytest.raises(UserError, match="pool: expected one of cls"):
        SimilarityHeatmaps(layers="blocks.*", pool="max")  # type: ignore[arg-type]
    with pytest.raises(UserError, match='no submodule matches "block"'):
        trainer(tmp_path, [SimilarityHeatmaps(layers="block")], max_epochs=1).fit(Plain(), None, loader)
    two = [SimilarityHeatmaps(layers="blocks.*"), SimilarityHeatmaps(layers="blocks.[01]"), RunRecorder()]
    twice = pytest.raises(UserError, match="Two callbacks measure cka, cosine, but a run's record holds one")
    with pytest.warns(UserWarning, match="val/cka_to_last/layer_02: logged already"), twice:
        trainer(tmp_path, two).validate(Plain(), loader, verbose=False)


class OfSequences(LightningModule):
    """Sequences (N, T, 8), which its blocks take with the tokens first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.blocks(batch[0].transpose(0, 1))


def test_sequences_with_the_tokens_first_are_told_or_refused(tmp_path: Path) -> None:
    module, x = OfSequences(), torch.randn(12, 10, 8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x), 6)
    measures = {"cosine": CosineSimilarity()}
    with pytest.raises(UserError, match=r"The step puts 10 samples through blocks.0 for a batch of 6 samples.*layout"):
        trainer(tmp_path, [SimilarityHeatmaps(measures, layers="blocks.*")]).validate(module, loader, verbose=False)
    callbacks = [SimilarityHeatmaps(measures, layers="blocks.*", layout="TND"), RunRecorder()]
    trainer(tmp_path, callbacks).validate(module, loader, verbose=False)
    (record,) = records(tmp_path)
    assert (record.samples, record.quantities["cosine"].options["layout"]) == (12, "TND")
    with torch.no_grad():
        first = module.blocks[0](x[:, 0])
        expected = cosine(torch.stack([first, module.blocks[1](first)]))
    torch.testing.assert_close(found(record, "cosine"), expected, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="layout: expected a letter for each axis"):
        SimilarityHeatmaps(layers="blocks.*", layout="batch first")


@pytest.mark.parametrize("measures", [{}, [], ["cka"]])
@pytest.mark.parametrize("callback", [SimilarityHeatmaps, EpochSimilarity])
def test_measures_that_name_none_are_not_the_usual_ones(callback: Any, measures: Any) -> None:
    with pytest.raises(UserError, match=r"measures: expected one metric or more by name, got .*\. Leave it out for"):
        callback(measures=measures)


@pytest.mark.parametrize("measure", ["cka", LinearCKA, cosine])
@pytest.mark.parametrize("callback", [SimilarityHeatmaps, EpochSimilarity])
def test_what_is_no_measure_is_refused_at_once(callback: Any, measure: Any) -> None:
    with pytest.raises(UserError, match=r"measures: mine is \w+, expected a metric: of layersim.similarity, such as"):
        callback(measures={"cka": LinearCKA(), "mine": measure})


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_a_plain_torchmetrics_metric_is_a_measure(tmp_path: Path, confidence: float | None) -> None:
    """torchmetrics' own mean cosine is ours without centring, interval and all."""
    measures = {"theirs": TorchmetricsCosine(reduction="mean"), "ours": CosineSimilarity(centering="none")}
    measures["error"] = MeanSquaredError()  # of which low values are those of alike layers
    heatmaps = SimilarityHeatmaps(measures, layers="blocks.*", pool=lambda output: output, confidence=confidence)
    loader = DataLoader(Points(), batch_size=32)
    trainer(tmp_path, [heatmaps, RunRecorder()]).validate(Plain(), loader, verbose=False)
    (record,) = records(tmp_path)
    torch.testing.assert_close(found(record, "theirs"), found(record, "ours"), rtol=0, atol=1e-6)
    assert not torch.allclose(found(record, "theirs"), torch.ones(3, 3).double(), atol=0.01)
    assert [record.quantities[name].better for name in measures] == ["higher", "higher", "lower"]
    if confidence is not None:
        ends = [record.quantities[name].interval or {} for name in measures]
        theirs, ours, _ = (end["low"] for end in ends)
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), rtol=0, atol=1e-5)


def test_intervals_are_recorded_and_drawn(tmp_path: Path) -> None:
    """As the metrics give them for all samples at once."""
    measures = {"cosine": CosineSimilarity(), "cka": LinearCKA(batch_size=16)}
    module = Plain()
    heatmaps = SimilarityHeatmaps(measures, layers="blocks.*", pool=lambda output: output, confidence=0.9)
    trainer(tmp_path, [heatmaps, RunRecorder()]).validate(module, DataLoader(Points(), batch_size=32), verbose=False)
    (record,) = records(tmp_path)
    for name, metric in measures.items():
        metric.update(by_hand(module, Points().x).float())
        interval = metric.interval(0.9)
        kept = record.quantities[name].interval
        assert kept is not None
        assert kept["confidence"] == 0.9
        for end in ("low", "high"):
            torch.testing.assert_close(
                torch.tensor(kept[end], dtype=torch.float64), getattr(interval, end), rtol=0, atol=1e-6
            )
        assert kept["low"][0][1] < record.values(name)[0][1] < kept["high"][0][1]
    assert (tmp_path / "figures/val-to_last-epoch-0000.png").is_file()


def test_a_confidence_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="a confidence above 0 and below 1"):
        SimilarityHeatmaps(confidence=95)


def test_groups_are_measured_only_where_they_are_random_groups(tmp_path: Path) -> None:
    """Neighbours are alike among the tokens of a text, and in an order that nobody drew."""

    def found(module: LayerwiseModule, **data: Any) -> tuple[str, Any]:
        measured = SimilarityHeatmaps()
        run = trainer(tmp_path, [measured])
        run.validate(module, **data, verbose=False)
        measured.start(run, module)
        cka = measured.make_metrics(module)["cka"]
        return cka.options["estimator"], cka.max_samples

    images = tiny.digits()
    assert found(tiny.module(), datamodule=images) == ("minibatch", None)
    assert found(tiny.module(), dataloaders=images.val_dataloader()) == ("debiased", 4096)
    for task, family in (("classification", "BERT"), ("language-modeling", "GPT-2")):
        families = tiny_transformers.CLASSIFIERS | tiny_transformers.CAUSAL
        module = LayerwiseModule(tiny_transformers.build(families[family], task))
        measured = SimilarityHeatmaps()
        measured._order = images.order
        assert measured.make_metrics(module)["cka"].options == {"estimator": "debiased", "max_samples": 4096}


@pytest.mark.parametrize("callback", [SimilarityHeatmaps, EpochSimilarity])
def test_a_recipe_names_measures_shortly_and_other_metrics_by_their_path(callback: type) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(callback, "callback")
    measures = {"ours": {"class_path": "CosineSimilarity"}, "theirs": {"class_path": "torchmetrics.CosineSimilarity"}}
    path = f"{callback.__module__}.{callback.__name__}"
    read = parser.parse_object({"callback": {"class_path": path, "init_args": {"measures": measures}}})
    made = parser.instantiate(read).callback.measures
    assert isinstance(made["ours"], CosineSimilarity)
    assert isinstance(made["theirs"].metric, TorchmetricsCosine)
