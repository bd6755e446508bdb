"""Film strips on a real trainer: every number against the functions on all features, after a resume, and on two
processes."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks import EpochSimilarity, RunRecorder
from callbacks.epoch_similarity import similarity_to_then
from layersim.errors import UserError
from layersim.report.quantity import Quantity
from layersim.report.records import LayerRecord, read_records
from layersim.similarity import CosineSimilarity, LinearCKA, cosine, linear_cka
from layersim.similarity.measure import Measure
from layersim.similarity.positions import splitmix64
from tests import tiny
from tests.callbacks.test_monitors import trainer
from tests.similarity.references import related_layers


class Drift(Callback):
    """Moves all weights by what the epoch alone decides, so that any number of processes has the same model."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        generator = torch.Generator().manual_seed(trainer.current_epoch)
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


class EveryEpoch(Callback):
    """All features of each validation epoch, in the order of the data."""

    def __init__(self) -> None:
        self.features: dict[int, Tensor] = {}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = [pl_module.backbone(batch) for batch in trainer.datamodule.val_dataloader()]  # type: ignore
        order = torch.cat([batch.position for batch in batches]).argsort()
        self.features[trainer.current_epoch] = torch.cat([batch.values for batch in batches], dim=1)[:, order]


def fit(path: Path, *callbacks: Callback, epochs: int, ckpt_path: Path | None = None, **options: Any) -> Trainer:
    module = tiny.module(optimizer=partial(torch.optim.SGD, lr=0.0))
    run = trainer(
        path,
        [Drift(), *callbacks, RunRecorder()],
        max_epochs=epochs,
        limit_train_batches=1,
        deterministic=True,
        **options,
    )
    run.fit(module, tiny.digits(eval_batch_size=55), ckpt_path=ckpt_path)
    return run


def records(path: Path) -> list[LayerRecord]:
    return read_records(path / "layers.jsonl")


def test_records_hold_each_layer_against_itself_earlier(tmp_path: Path) -> None:
    measures: dict[str, Measure] = {
        "cka": LinearCKA(estimator="debiased"),
        "raw": CosineSimilarity(centering="none"),
    }
    watched, drift = EveryEpoch(), EpochSimilarity(epochs=[0, 2], measures=measures, max_samples=100)
    run = fit(tmp_path, watched, drift, epochs=4)
    chosen = splitmix64(torch.arange(360)).argsort()[:100].sort().values
    found = [record.quantities for record in records(tmp_path)]
    assert found[0] == {}
    assert all(quantity.axes == ("epoch", "layer") for record in found for quantity in record.values())
    assert [record["cka_to_epoch"].ticks["epoch"] for record in found[1:]] == [[0], [0], [0, 2]]
    expected = {"cka": partial(linear_cka, estimator="debiased"), "raw": partial(cosine, centering="none")}
    for epoch, record in enumerate(found):
        for name, measure in expected.items():
            kept = record.get(f"{name}_to_epoch", Quantity(values=[], ticks={"epoch": []}))
            for earlier, values in zip(kept.ticks["epoch"], kept.values, strict=True):
                now, then = (watched.features[place][:, chosen] for place in (epoch, earlier))
                matrix = measure(now, then)
                torch.testing.assert_close(torch.tensor(values).double(), matrix.diagonal(), rtol=0, atol=1e-6)
                assert not torch.allclose(matrix.diagonal(), torch.ones(3).double(), atol=1e-3), "the model moved"
    options = {"cka_to_epoch": {"estimator": "debiased"}, "raw_to_epoch": {"centering": "none"}}
    told = {name: quantity.options for name, quantity in found[3].items()}
    assert told == {name: {"max_samples": 100, **own} for name, own in options.items()}
    mean = sum(found[3]["cka_to_epoch"].values[1]) / 3
    assert run.callback_metrics["val/cka_to_epoch_2"].item() == pytest.approx(mean)
    pictures = {path.name for path in (tmp_path / "figures").iterdir()}
    drawn = [f"{name}_{what}" for name in measures for what in ("to_epoch", "since_epoch_0")]
    assert pictures == {f"val-{name}-epoch-000{epoch}.png" for name in drawn for epoch in (1, 2, 3)}


@pytest.mark.parametrize(
    ("options", "kept"),
    [({}, [0]), ({"every": 2}, [0, 2, 4]), ({"epochs": [3]}, [3]), ({"epochs": [1], "every": 3}, [0, 1, 3])],
)
def test_which_epochs_are_kept(tmp_path: Path, options: dict[str, Any], kept: list[int]) -> None:
    drift = EpochSimilarity(**options, max_samples=10)
    fit(tmp_path, drift, epochs=5)
    assert list(drift.state_dict()["kept"]) == kept
    assert list(drift.strips["cka"]) == [epoch for epoch in kept if epoch < 4]


def test_a_resumed_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, first, second = (EpochSimilarity(every=2, max_samples=50) for _ in range(3))
    fit(tmp_path / "whole", whole, epochs=5)
    fit(tmp_path / "first", first, epochs=3).save_checkpoint(tmp_path / "3.ckpt")
    torch.load(tmp_path / "3.ckpt", weights_only=True)
    fit(tmp_path / "second", second, epochs=5, ckpt_path=tmp_path / "3.ckpt")
    assert second.strips == whole.strips
    assert second.strips["cka"][0].keys() == {1, 2, 3, 4}, "the strip has the epochs before the stop too"
    assert records(tmp_path / "second") == records(tmp_path / "whole")
    fresh = EpochSimilarity(every=2, max_samples=50)
    fit(tmp_path / "control", fresh, epochs=3)
    assert first.strips == fresh.strips != whole.strips


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """360 samples in 7 batches of which one process reads 205, the other 155."""
    one, two = tmp_path / "one", tmp_path / "two"
    fit(one, EpochSimilarity(every=1, max_samples=100), epochs=3)
    fit(two, EpochSimilarity(every=1, max_samples=100), epochs=3, strategy="ddp_fork", devices=2)
    for mine, theirs in zip(records(one), records(two), strict=True):
        assert mine.quantities.keys() == theirs.quantities.keys()
        for name, quantity in mine.quantities.items():
            assert theirs.quantities[name].ticks == quantity.ticks
            close = [pytest.approx(values, abs=1e-9) for values in quantity.values]
            assert theirs.values(name) == close
    assert records(two)[-1].quantities["cka_to_epoch"].ticks == {"epoch": [0, 1]}


def test_outside_of_a_training_nothing_is_measured(tmp_path: Path) -> None:
    drift = EpochSimilarity(max_samples=10)
    run = fit(tmp_path, drift, epochs=2)
    strips = copy.deepcopy(drift.strips)
    run.validate(run.lightning_module, run.datamodule, verbose=False)  # type: ignore[attr-defined]
    assert drift.strips == strips
    assert drift.quantities == {}


def test_another_training_begins_with_nothing_kept(tmp_path: Path) -> None:
    again, fresh = EpochSimilarity(max_samples=50), EpochSimilarity(max_samples=50)
    fit(tmp_path / "before", again, epochs=3, limit_val_batches=2)
    fit(tmp_path / "again", again, epochs=2)  # other samples, which those kept could not be compared to
    fit(tmp_path / "fresh", fresh, epochs=2)
    assert again.strips == fresh.strips
    assert [*again.strips["cka"][0]] == [1]
    assert records(tmp_path / "again") == records(tmp_path / "fresh")


@pytest.mark.parametrize(
    "options", [{"epochs": [0.5]}, {"epochs": ["0"]}, {"epochs": [True]}, {"every": 1.5}, {"every": "2"}]
)
def test_epochs_are_whole_numbers(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Expected some epochs from 0, or every from 1, but got"):
        EpochSimilarity(**options)


def test_a_dead_layer_is_nan_and_told_once() -> None:
    now, then = related_layers(40, 8), related_layers(40, 8, seed=1)
    then[2] = 3.0
    with pytest.warns(UserWarning, match="similarity to epoch 7 is NaN for layer 3 .counted from 1.") as told:
        values = similarity_to_then(now, then, LinearCKA(estimator="debiased"), 7)
    assert len(told) == 1
    expected = linear_cka(now[[0, 1, 3]], then[[0, 1, 3]], estimator="debiased").diagonal()
    assert [values[place] for place in (0, 1, 3)] == pytest.approx(expected.tolist())
    assert values[2] != values[2]


def test_what_cannot_be_kept_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"some epochs from 0, or every from 1, but got \[-1\] and None"):
        EpochSimilarity(epochs=[-1])
    with pytest.raises(UserError, match=r"some epochs from 0, or every from 1, but got \[\] and None"):
        EpochSimilarity(epochs=[])
    with pytest.raises(UserError, match="max_samples: expected at least 4, got 3"):
        EpochSimilarity(max_samples=3)
    with pytest.raises(UserError, match=r"keep the epochs \[2\].* the epochs 1, 3, … alone are validated"):
        fit(tmp_path, EpochSimilarity(epochs=[2, 3], max_samples=10), epochs=4, check_val_every_n_epoch=2)


def test_samples_without_a_position_are_refused() -> None:
    drift = EpochSimilarity(max_samples=10)
    module = tiny.module()
    metrics = drift.make_metrics(module)
    with pytest.raises(UserError, match="tells samples apart by their position"):
        drift.update(metrics, module({"image": torch.zeros(5, 1, 8, 8)}))


def test_other_data_after_a_resume_are_refused(tmp_path: Path) -> None:
    fit(tmp_path, EpochSimilarity(max_samples=50), epochs=1).save_checkpoint(tmp_path / "1.ckpt")
    with pytest.raises(UserError, match=r"kept 50 samples at epoch 0, but .* epoch 1 do not hold the same ones"):
        fit(tmp_path, EpochSimilarity(max_samples=50), epochs=2, ckpt_path=tmp_path / "1.ckpt", limit_val_batches=2)
