"""Resuming: what becomes of learning rates, moments, options and schedules in a checkpoint."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from layersim.errors import UserError
from layersim.objectives import Aligned, Mixed, Objective, Step
from layersim.optimization.schedules import WarmupDecay
from layersim.runs.resume import prefer_given_options
from tests import tiny


def hparams(rate: float) -> dict[str, Any]:
    return {"optimizer": {"class_path": "SGD", "init_args": {"lr": rate}}, "lr_scheduler": None}


def trained(rate: float, make: Any = None, steps: int = 3) -> tuple[dict[str, Any], LRScheduler | None]:
    """A checkpoint after some epochs of a schedule that has cut the rate to a tenth."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=rate, momentum=0.9)
    schedule = make(optimizer) if make else None
    for _ in range(steps):
        weight.grad = torch.ones(1)
        optimizer.step()
        if schedule is not None:
            schedule.step(*([1.0] if isinstance(schedule, ReduceLROnPlateau) else []))
    states = [schedule.state_dict()] if schedule is not None else []
    return {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": states, "learning_rates": [rate]}, schedule


def given(rate: float, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=rate, momentum=0.9, **options)


def group(checkpoint: dict[str, Any]) -> dict[str, Any]:
    (state,) = checkpoint["optimizer_states"]
    return state["param_groups"][0]  # type: ignore[no-any-return]


SCHEDULES = {
    "steps": lambda optimizer: MultiStepLR(optimizer, [1]),
    "plateau": lambda optimizer: ReduceLROnPlateau(optimizer, patience=0, threshold=0.0, cooldown=9),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("command", [True, False])
def test_the_same_options_keep_a_rate_that_a_schedule_has_lowered(schedule: str, command: bool) -> None:
    checkpoint, _ = trained(0.1, SCHEDULES[schedule])
    known = hparams(0.1) if command else {}
    prefer_given_options({**checkpoint, "hyper_parameters": known}, given(0.1), known)
    assert group(checkpoint)["lr"] == pytest.approx(0.01)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_another_rate_moves_the_whole_schedule(schedule: str) -> None:
    checkpoint, _ = trained(0.1, SCHEDULES[schedule])
    prefer_given_options({**checkpoint, "hyper_parameters": hparams(0.1)}, given(0.4), hparams(0.4))
    assert group(checkpoint)["lr"] == pytest.approx(0.04)
    if schedule == "steps":
        assert checkpoint["lr_schedulers"][0]["base_lrs"] == pytest.approx([0.4])
        assert group(checkpoint)["initial_lr"] == pytest.approx(0.4)


def in_turn(optimizer: torch.optim.Optimizer) -> LRScheduler:
    """A warm-up, then a cosine: two schedules within a third."""
    warmup, cosine = LinearLR(optimizer, 0.1, total_iters=4), CosineAnnealingLR(optimizer, 10)
    return SequentialLR(optimizer, [warmup, cosine], [4])


def test_another_rate_moves_the_schedules_within_a_schedule() -> None:
    """What follows is what the new rate comes to from the first step."""

    def rates(optimizer: torch.optim.Optimizer, schedule: LRScheduler, steps: int) -> list[float]:
        seen = []
        for _ in range(steps):
            optimizer.step()
            schedule.step()
            seen.append(optimizer.param_groups[0]["lr"])
        return seen

    scratch = given(0.4)
    straight = rates(scratch, in_turn(scratch), 8)
    checkpoint, _ = trained(0.1, in_turn, steps=2)
    resumed = given(0.4)
    schedule = in_turn(resumed)
    prefer_given_options({**checkpoint, "hyper_parameters": hparams(0.1)}, resumed, hparams(0.4))
    assert [each["base_lrs"] for each in checkpoint["lr_schedulers"][0]["_schedulers"]] == [[0.4], [0.4]]
    resumed.load_state_dict(checkpoint["optimizer_states"][0])
    schedule.load_state_dict(checkpoint["lr_schedulers"][0])
    assert rates(resumed, schedule, 6) == pytest.approx(straight[2:])


def test_without_a_schedule_the_given_rate_holds_and_moments_stay() -> None:
    checkpoint, _ = trained(0.1)
    before = checkpoint["optimizer_states"][0]["state"][0]["momentum_buffer"].clone()
    prefer_given_options(checkpoint, given(0.4, weight_decay=0.2), {})
    assert group(checkpoint)["lr"] == 0.4
    assert group(checkpoint)["weight_decay"] == 0.2
    assert torch.equal(checkpoint["optimizer_states"][0]["state"][0]["momentum_buffer"], before)


def test_a_rate_of_zero_cannot_be_scaled() -> None:
    checkpoint, _ = trained(0.0, SCHEDULES["steps"])
    with pytest.raises(UserError, match="learning rate of 0"):
        prefer_given_options({**checkpoint, "hyper_parameters": hparams(0.0)}, given(0.4), hparams(0.4))


def test_an_optimizer_of_another_kind_is_refused() -> None:
    checkpoint, _ = trained(0.1)
    other = torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    with pytest.raises(UserError, match=r"no .*betas.*AdamW"):
        prefer_given_options(checkpoint, other, {})


class Rates(Callback):
    """The learning rate of each training step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def fit(
    path: Path, *, batch_size: int = 500, resumed: bool = False, decay: Any = "linear", **options: Any
) -> list[float]:
    """The rates of a training of three steps an epoch, whose checkpoint stands at `path`/last.ckpt."""
    objective: Objective = options.pop("objective", Aligned())
    scheduler = decay and partial(WarmupDecay, warmup=0.0, decay=decay)
    module = tiny.module(
        objective=objective,
        optimizer=partial(torch.optim.SGD, lr=1e-3),
        **({"lr_scheduler": scheduler} if decay else {}),
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    options = {"enable_checkpointing": False, "limit_val_batches": 0, **options}
    trainer = Trainer(default_root_dir=path, callbacks=[rates := Rates()], **quiet, **options)
    trainer.fit(module, tiny.digits(batch_size=batch_size), ckpt_path=path / "last.ckpt" if resumed else None)
    if not resumed:
        trainer.save_checkpoint(path / "last.ckpt")
    return rates.seen


class Drawing(Aligned):
    """Notes the layers that each step reads."""

    def __init__(self) -> None:
        super().__init__(sampled_layers=1)
        self.read: list[list[float]] = []

    def weights(self, num_layers: int, step: Step | None) -> list[float]:
        weights = super().weights(num_layers, step)
        self.read += [weights] if step is not None else []
        return weights


def test_the_seed_draws_the_layers_of_a_training_resumed_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(seed: int, **options: Any) -> list[list[float]]:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))  # as `seed_everything` leaves it
        fit(tmp_path, objective=(objective := Drawing()), decay=None, batch_size=50, **options)
        return objective.read

    unbroken = read(1, max_epochs=2)
    assert len({tuple(weights) for weights in unbroken}) == 2, "the control: it draws one of two layers"
    assert read(1, max_epochs=1) + read(1, max_epochs=2, resumed=True) == unbroken
    assert read(2, max_epochs=2) != unbroken


def test_a_longer_training_goes_on_with_the_longer_trainings_rates(tmp_path: Path) -> None:
    """From the first step: what the checkpoint's optimizer has is the rate 0 at which the shorter one ended."""
    short = fit(tmp_path, max_epochs=2)
    assert short == pytest.approx([1e-3 * (1 - step / 6) for step in range(6)])
    longer = fit(tmp_path, resumed=True, max_epochs=4)
    assert longer == pytest.approx([1e-3 * (1 - step / 12) for step in range(6, 12)])


@pytest.mark.parametrize("decay", ["linear", None])
@pytest.mark.parametrize("changed", [{"batch_size": 250}, {"accumulate_grad_batches": 3}])
def test_a_schedule_is_not_resumed_with_steps_of_another_size(
    tmp_path: Path, decay: Any, changed: dict[str, Any]
) -> None:
    objective = Aligned() if decay else Mixed()
    fit(tmp_path, max_epochs=1, decay=decay, objective=objective)
    now = 6 if "batch_size" in changed else 1
    with pytest.raises(
        UserError, match=rf"3 optimizer steps an epoch, but now there are {now}.*batch_size.*devices.*accumulate_grad"
    ):
        fit(tmp_path, resumed=True, max_epochs=2, decay=decay, objective=objective, **changed)


def test_a_training_without_a_schedule_may_change_its_batches(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=1, decay=None)
    assert fit(tmp_path, resumed=True, max_epochs=2, decay=None, batch_size=250) == pytest.approx([1e-3] * 6)


def test_a_number_of_steps_is_the_users_own_length(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=2)
    rates = fit(tmp_path, resumed=True, max_steps=8, batch_size=250)
    assert rates == pytest.approx([1e-3 * (1 - step / 8) for step in range(6, 8)])


def test_a_checkpoint_that_does_not_tell_its_steps_is_taken_as_it_is(tmp_path: Path) -> None:
    fit(tmp_path, max_epochs=1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint.pop("steps_per_epoch") == 3
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert fit(tmp_path, resumed=True, max_epochs=2, batch_size=250)[0] == pytest.approx(1e-3 * (1 - 3 / 12))


def test_a_cycle_is_resumed_where_it_was(tmp_path: Path) -> None:
    """Stepped by optimizer step, momentum too: what one training of two epochs comes to, two of one come to."""

    def rates(path: Path, epochs: int, resumed: bool = False) -> list[float]:
        torch.manual_seed(0)
        cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=6)
        module = tiny.module(optimizer=partial(torch.optim.SGD, lr=1e-3, momentum=0.9), lr_scheduler=cycle)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
        trainer = Trainer(
            default_root_dir=path, callbacks=[seen := Rates()], max_epochs=epochs, enable_checkpointing=False,
            limit_val_batches=0, **quiet,
        )  # fmt: skip
        trainer.fit(module, tiny.digits(batch_size=500), ckpt_path=path / "last.ckpt" if resumed else None)
        trainer.save_checkpoint(path / "last.ckpt")
        return seen.seen

    straight = rates(tmp_path / "straight", 2)
    assert straight[-1] < max(straight)
    assert rates(tmp_path / "cut", 1) + rates(tmp_path / "cut", 2, resumed=True) == pytest.approx(straight)
    whole, cut = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("straight", "cut"))
    assert group(cut)["momentum"] == group(whole)["momentum"]
    for name, weights in whole["state_dict"].items():
        torch.testing.assert_close(cut["state_dict"][name], weights, rtol=0, atol=1e-7)


def test_another_interval_is_another_schedule() -> None:
    known = {**hparams(0.1), "lr_scheduler_interval": "step"}
    checkpoint, _ = trained(0.1)
    with pytest.raises(UserError, match="trained with lr_scheduler_interval step, but epoch is given"):
        prefer_given_options(
            {**checkpoint, "hyper_parameters": known}, given(0.1), {**known, "lr_scheduler_interval": "epoch"}
        )
