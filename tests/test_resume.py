"""Resuming: what becomes of learning rates, moments and options in a checkpoint."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, ReduceLROnPlateau

from layersim.errors import UserError
from layersim.resume import prefer_given_options


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
    return {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": states}, schedule


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
