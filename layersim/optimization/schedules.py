"""Learning-rate schedules: what they count, and one that knows how many steps the training takes."""

import warnings
from collections.abc import Callable
from functools import partial
from math import cos, inf, pi
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer, cli
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, CyclicLR, LambdaLR, LRScheduler, OneCycleLR, SequentialLR

from layersim.errors import UserError, as_user_error, check_choice, check_share

Interval = Literal["step", "epoch"]
Decay = Literal["cosine", "linear", "constant"]

_LENGTHS = ("T_max", "T_0", "total_iters", "step_size", "total_steps")
"""Options of torch's schedules that are a number of steps or of epochs."""


class ReduceLROnPlateau(cli.ReduceLROnPlateau):
    """Lightning's, which follows `val/loss` where no other `monitor` is named."""

    def __init__(self, optimizer: Optimizer, monitor: str = "val/loss", *args: Any, **kwargs: Any) -> None:
        super().__init__(optimizer, monitor, *args, **kwargs)


def scheduled(optimizer: Optimizer, make: Callable[..., Any]) -> Any:
    """The schedule that `make` makes for the optimizer, which must not give groups of several learning rates one. One
    whose total_steps are missing has 0 of them, and `check_lasts` says how many there are."""
    before = {group["lr"] for group in optimizer.param_groups}
    with as_user_error("torch cannot make the learning-rate schedule", "Change --model.lr_scheduler."):
        try:
            schedule = make(optimizer)
        except ValueError as error:
            if not isinstance(make, partial) or "must define either total_steps" not in str(error):  # of OneCycleLR
                raise
            schedule = make(optimizer, total_steps=2)
            schedule.total_steps = 0
    if len(before) > 1 and len({group.get("initial_lr", group["lr"]) for group in optimizer.param_groups}) == 1:
        raise UserError(
            f"{type(schedule).__name__} starts all parameters from one learning rate, but their groups have "
            f"{len(before)}. Change --model.lr_scheduler, or leave rates out of --model.parameter_groups."
        )
    return schedule


def monitor_of(schedule: object) -> str | None:
    """The metric that a schedule waits for; None if it waits for none."""
    if not isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return None
    return getattr(schedule, "monitor", "val/loss")


def plateau_entry(schedule: object, interval: Interval, trainer: Trainer) -> dict[str, Any]:
    """What Lightning is told of a ReduceLROnPlateau, which moves as often as its metric is measured.

    Raises:
        UserError: it is moved by step, or nothing is validated.
    """
    monitor = monitor_of(schedule)
    if interval == "step" and str(monitor).startswith("val/"):
        raise UserError(f"ReduceLROnPlateau waits for {monitor} of an epoch. Leave --model.lr_scheduler_interval out.")
    if trainer.limit_val_batches == 0 and str(monitor).startswith("val/"):
        raise UserError(
            f"ReduceLROnPlateau waits for {monitor}, but nothing is validated. Change --trainer.limit_val_batches, or "
            "--model.lr_scheduler."
        )
    every = trainer.check_val_every_n_epoch
    # where validation counts batches across epochs, an epoch may end before the first
    return {"monitor": monitor, "frequency": every or 1, "strict": every is not None}


def interval_of(schedule: LRScheduler) -> Interval:
    """What a schedule counts where nobody says: optimizer steps where it knows how many there are (OneCycleLR) or turns
    within an epoch (CyclicLR), or goes through one that does; else epochs, as is usual with torch's."""
    parts = getattr(schedule, "_schedulers", [])  # of SequentialLR and ChainedScheduler
    counts_steps = isinstance(schedule, CyclicLR) or hasattr(schedule, "total_steps")
    return "step" if counts_steps or any(interval_of(part) == "step" for part in parts) else "epoch"


def told(schedule: LRScheduler, interval: Interval, steps: float, epochs: float) -> str:
    """One line on how often a schedule moves, by a training's optimizer steps and epochs (infinite where not known)."""
    name = type(schedule).__name__
    options = [f"{key} {vars(schedule)[key]}" for key in _LENGTHS if key in vars(schedule)]
    whole = f"{name} ({', '.join(options)})" if options else name
    count, other = (steps, "epoch") if interval == "step" else (epochs, "step")
    length = f", of which this training has {int(count)}" if count < inf else ""
    moves = "optimizer step" if interval == "step" else "epoch"
    return f"{whole} moves every {moves}{length}; --model.lr_scheduler_interval={other} changes that."


def check_lasts(schedule: LRScheduler, count: float) -> None:
    """Refuses a schedule that ends, such as OneCycleLR, before a training that moves it so many times: torch would stop
    the training there."""
    total = getattr(schedule, "total_steps", inf)
    if not isinstance(schedule, WarmupDecay) and total < count:
        ends = f"ends after {total} steps" if total else "has no total_steps"
        moved, steps = ("without end", "") if count == inf else (f"{int(count)} times", f"={int(count)}")
        raise UserError(
            f"{type(schedule).__name__} {ends}, but this training moves it {moved}. Set "
            f"--model.lr_scheduler.total_steps{steps}, or change --trainer.max_epochs or --trainer.max_steps."
        )


def try_out(schedule: Any) -> None:
    """Moves a schedule twice, since torch finds out some options, such as a `T_max` of 0, only then."""
    plateau = isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
    with warnings.catch_warnings(), as_user_error("torch cannot move the schedule", "Change --model.lr_scheduler."):
        warnings.simplefilter("ignore")  # the optimizer takes no step
        for _ in range(min(2, getattr(schedule, "total_steps", 2))):
            schedule.step(*([1.0] if plateau else []))


def start_from(schedule: LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau, rates: list[float]) -> None:
    """Makes a schedule, and the optimizer that it moves, what they were had the optimizer's groups these rates; a
    UserError where it has rates of its own, or is made of several."""
    if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return  # it lowers whatever rate there is
    if isinstance(schedule, OneCycleLR | CyclicLR | SequentialLR | ChainedScheduler) or 0 in schedule.base_lrs:
        raise UserError(
            f"LearningRateFinder found a rate, but {type(schedule).__name__} does not start from the optimizer's "
            "rate alone, or from 0, which no factor raises. Leave the finder out of --trainer.callbacks, or change "
            "--model.lr_scheduler or --model.optimizer.lr."
        )
    moved = zip(schedule.get_last_lr(), schedule.base_lrs, rates, strict=True)
    schedule._last_lr = [last * rate / base for last, base, rate in moved]
    schedule.base_lrs = [*rates]
    for group, rate, now in zip(schedule.optimizer.param_groups, rates, schedule._last_lr, strict=True):
        group["initial_lr"], group["lr"] = rate, now


class WarmupDecay(LambdaLR):
    """A linear rise over the first share of all steps, then a fall to what would be zero one step behind the last.

    The module tells it the number of steps, so that it follows `max_epochs` and the batch size by itself.

    Args:
        optimizer: whose learning rates are the peak.
        warmup: share of the steps that rise, 0 … 1.
        decay: shape of the fall: `cosine`, `linear`, or `constant` for none.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.1, decay: Decay = "cosine") -> None:
        check_share("a warmup share", warmup, zero=True, one=True)
        check_choice("decay", decay, Decay)
        self.warmup = warmup
        self.decay = decay
        self.total_steps = 1
        super().__init__(optimizer, lambda step: self.factor(step))

    def spread_over(self, total_steps: int) -> None:
        """Fits the schedule to a training of so many optimizer steps."""
        self.total_steps = max(1, total_steps)
        for group, peak in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = peak * self.factor(self.last_epoch)

    def factor(self, step: int) -> float:
        """Share of the peak at optimizer step `step` (from 0)."""
        rising = round(self.warmup * self.total_steps)
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, self.total_steps - rising))
        match self.decay:
            case "cosine":
                return (1 + cos(pi * progress)) / 2
            case "linear":
                return 1 - progress
            case "constant":
                return 1.0

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, not what it is: a resumed run follows the options it is started with."""
        options = ("warmup", "decay", "total_steps")
        return {key: value for key, value in super().state_dict().items() if key not in options}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there; the optimizer, restored before, gets the rate that the length of now gives that step."""
        super().load_state_dict(state_dict)
        self.spread_over(self.total_steps)
