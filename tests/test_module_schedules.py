"""The module: its learning rates by step and epoch, and lengths that are not known."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, SequentialLR, StepLR
from torch.utils.data import DataLoader, IterableDataset

from callbacks import LayerAccuracyMonitor
from layersim.errors import UserError
from layersim.objectives import (
    Mixed,
    Progressive,
)
from layersim.optimization.schedules import WarmupDecay, start_from
from tests import tiny
from tests.test_module import batch, trainer


def test_warmup_decay_follows_the_number_of_steps() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupDecay(optimizer, warmup=0.2, decay="linear")
    schedule.spread_over(10)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25])
    assert optimizer.param_groups[0]["lr"] == 0.0


class Stream(IterableDataset[dict[str, Tensor]]):
    """Data that does not say how much it is."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield batch()


@pytest.mark.parametrize(
    "follows",
    [{"objective": Mixed()}, {"objective": Progressive()}, {"lr_scheduler": partial(WarmupDecay, decay="linear")}],
    ids=["Mixed", "Progressive", "WarmupDecay"],
)
@pytest.mark.parametrize(
    ("length", "stream"),
    [({"max_epochs": -1}, False), ({"max_epochs": None, "max_time": "00:01:00:00"}, False), ({"max_epochs": 5}, True)],
    ids=["no end", "a time", "data of no length"],
)
def test_what_follows_the_length_needs_one(
    tmp_path: Path, follows: dict[str, Any], length: dict[str, Any], stream: bool
) -> None:
    data = [DataLoader(Stream(), batch_size=None)] * 2 if stream else [tiny.digits()]
    with pytest.raises(UserError, match=r"length is not known here\. Set --trainer\.max_steps or"):
        trainer(tmp_path, limit_val_batches=0, **length).fit(tiny.module(**follows), *data)


@pytest.mark.parametrize(
    ("scheduling", "steps"), [({0: 4, 2: 1}, 2 + 2 + 8 + 8), ({0: 1, 1: 4}, 8 + 2 + 2 + 2), ({0: 4}, 8)]
)
def test_the_length_counts_what_each_epoch_accumulates(scheduling: dict[int, int], steps: int, tmp_path: Path) -> None:
    def fit(epochs: int, **options: Any) -> list[int]:
        made = tiny.module(lr_scheduler=partial(WarmupDecay, decay="linear"))
        told: list[int] = []
        spread = WarmupDecay.spread_over
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(WarmupDecay, "spread_over", lambda self, total: (told.append(total), spread(self, total)))
            callbacks = [GradientAccumulationScheduler(scheduling)]
            run = trainer(tmp_path, max_epochs=epochs, callbacks=callbacks, limit_train_batches=8, limit_val_batches=0)
            run.fit(made, tiny.digits(), **options)
            run.save_checkpoint(tmp_path / "last.ckpt")
            assert run.global_step == told[-1]
        return told

    assert {*fit(4)} == {steps}
    fit(5, ckpt_path=tmp_path / "last.ckpt")


def test_steps_are_a_length_for_data_that_has_none(tmp_path: Path) -> None:
    module = tiny.module(
        objective=Mixed(), optimizer=partial(torch.optim.SGD, lr=1.0), lr_scheduler=partial(WarmupDecay, decay="linear")
    )
    trainer(tmp_path, limit_val_batches=0, max_epochs=-1, max_steps=4).fit(
        module, *[DataLoader(Stream(), batch_size=None)] * 2
    )
    schedule = module.lr_schedulers()
    assert isinstance(schedule, WarmupDecay)
    assert schedule.total_steps == 4


def test_warmup_decay_shapes() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    cosine = WarmupDecay(optimizer, warmup=0.0, decay="cosine")
    cosine.spread_over(4)
    assert [cosine.factor(step) for step in range(5)] == pytest.approx([1, 0.8535534, 0.5, 0.1464466, 0])
    constant = WarmupDecay(optimizer, warmup=0.5, decay="constant")
    constant.spread_over(4)
    assert [constant.factor(step) for step in range(5)] == [0.5, 1, 1, 1, 1]
    with pytest.raises(UserError, match="warmup share"):
        WarmupDecay(optimizer, warmup=2)


@pytest.mark.parametrize("make", [WarmupDecay, partial(StepLR, step_size=2)])
def test_a_rate_that_is_found_does_not_scale_a_schedule_that_starts_from_zero(make: Any) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0)
    with pytest.raises(UserError, match="alone, or from 0, which no factor raises"):
        start_from(make(optimizer), [0.02])


ONE_CYCLE = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=6)


class Rates(Callback):
    """The learning rate of each training step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def rates_of(path: Path, scheduler: Any, **options: Any) -> list[float]:
    """Of two epochs of three steps."""
    module = tiny.module(optimizer=partial(torch.optim.SGD, lr=1.0, momentum=0.9), lr_scheduler=scheduler, **options)
    rates = Rates()
    trainer(path, max_epochs=2, limit_train_batches=3, limit_val_batches=0, callbacks=[rates]).fit(
        module, tiny.digits()
    )
    return rates.seen


@pytest.mark.parametrize(
    ("scheduler", "interval"),
    [
        (ONE_CYCLE, "step"),
        (partial(torch.optim.lr_scheduler.CyclicLR, base_lr=0.1, max_lr=0.2, step_size_up=2), "step"),
        (lambda made: SequentialLR(made, [ConstantLR(made), ONE_CYCLE(made)], [2]), "step"),
        (partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2), "epoch"),
        (partial(torch.optim.lr_scheduler.LinearLR, total_iters=4), "epoch"),
        (partial(torch.optim.lr_scheduler.StepLR, step_size=1), "epoch"),
    ],
    ids=["OneCycleLR", "CyclicLR", "SequentialLR", "CosineAnnealingLR", "LinearLR", "StepLR"],
)
def test_a_schedule_moves_by_what_it_counts(
    scheduler: Any, interval: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As torch's own moves when it is called after each step, or after each third; a line says which."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    expected, schedule = [], scheduler(optimizer)
    for step in range(6):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if interval == "step" or step % 3 == 2:
            schedule.step()
    assert rates_of(tmp_path, scheduler) == pytest.approx(expected)
    assert f"moves every {'optimizer step' if interval == 'step' else 'epoch'}, of which" in caplog.text


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using")  # Lightning doubts it, too
def test_the_interval_that_is_given_holds(tmp_path: Path) -> None:
    halves = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    assert rates_of(tmp_path, halves, lr_scheduler_interval="step") == [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert len(set(rates_of(tmp_path, ONE_CYCLE, lr_scheduler_interval="epoch"))) == 2


def test_a_schedule_that_ends_before_the_training_is_refused(tmp_path: Path) -> None:
    short = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=5)
    with pytest.raises(UserError, match="ends after 5 steps, but this training moves it 6 times"):
        rates_of(tmp_path, short)
    untold = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1)
    with pytest.raises(UserError, match=r"OneCycleLR has no total_steps, .* 6 times\. Set .*total_steps=6,"):
        rates_of(tmp_path, untold)
    with pytest.raises(UserError, match=r"learning-rate schedule: Expected float between 0 and 1 pct_start"):
        rates_of(tmp_path, partial(untold, pct_start=2.0))  # torch's other words stay
    with pytest.raises(UserError, match=r"learning-rate schedule: You must define either total_steps"):
        rates_of(tmp_path, lambda made: SequentialLR(made, [ConstantLR(made), untold(made)], [2]))


@pytest.mark.parametrize("epochs", [1, 2])
def test_torchs_plateau_follows_the_validation_loss(
    epochs: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a patience of none and nothing that is better, the rate falls at each validation."""
    never = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=1.0, factor=0.5)
    module = tiny.module(optimizer=partial(torch.optim.SGD, lr=1e-3), lr_scheduler=never)
    rates = Rates()
    trainer(
        tmp_path, max_epochs=5, limit_train_batches=1, limit_val_batches=1, check_val_every_n_epoch=epochs,
        callbacks=[rates, LayerAccuracyMonitor()],
    ).fit(module, tiny.digits())  # fmt: skip
    falls = {1: [1e-3, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5], 2: [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4]}
    assert rates.seen == pytest.approx(falls[epochs])
    assert "follows val/loss" in caplog.text
