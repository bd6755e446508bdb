"""Resuming: what a checkpoint carries of the optimizer and of the training's length, and what the user gives now."""

from typing import Any

import torch
from torch.optim import Optimizer

from layersim.errors import UserError

STEPS_PER_EPOCH = "steps_per_epoch"
"""A checkpoint's entry: how many optimizer steps an epoch took."""


def prefer_given_options(
    checkpoint: dict[str, Any], given: Optimizer, hparams: dict[str, Any], started: float | None = None
) -> None:
    """Rewrites a checkpoint's optimizer and scheduler states, in place, to the options of the optimizer that was given.

    Momenta and counts stay. A changed learning rate moves the whole schedule by its ratio to the old one.

    Args:
        checkpoint: as Lightning saves it.
        given: an optimizer with the options that training shall go on with.
        hparams: the module's hyper-parameters now; compared to the checkpoint's where both were made by the command.
        started: the rate that the schedule that is given starts from, where it is not the optimizer's (OneCycleLR).

    Raises:
        UserError: another optimizer or another schedule than the checkpoint's: its state means nothing to them.
    """
    stored = checkpoint.get("hyper_parameters") or {}
    if stored and hparams:
        _refuse_change("optimizer", stored["optimizer"]["class_path"], hparams["optimizer"]["class_path"])
        for what in ("lr_scheduler", "lr_scheduler_interval"):
            _refuse_change(what, stored.get(what), hparams.get(what))
    options = {key: value for key, value in given.param_groups[0].items() if key != "params"}
    moved = {"lr", "initial_lr"}
    if any(schedule.get("cycle_momentum") for schedule in checkpoint.get("lr_schedulers", [])):
        moved |= {"momentum", "betas"}
    for state in checkpoint.get("optimizer_states", []):
        for group in state["param_groups"]:
            if missing := options.keys() - group.keys():
                raise UserError(
                    f"The checkpoint's optimizer has no {', '.join(sorted(missing))}: it is of another kind than "
                    f"{type(given).__name__}. Resume with the optimizer it was trained with."
                )
            peak = _peak(stored, group, options["lr"] if checkpoint.get("lr_schedulers") else group["lr"])
            by_command = "lr" in stored.get("optimizer", {}).get("init_args", {})
            rate = options["lr"] if by_command or started is None else started
            if rate != peak:
                if peak == 0:
                    raise UserError("The checkpoint was trained with a learning rate of 0, which no factor raises.")
                ratio = rate / peak
                group["lr"] *= ratio
                if "initial_lr" in group:
                    group["initial_lr"] = rate
                for schedule in checkpoint.get("lr_schedulers", []):
                    _scale(schedule, ratio)
            group.update({key: value for key, value in options.items() if key not in moved})


def check_length(checkpoint: dict[str, Any], steps: int) -> None:
    """Whether a checkpoint's step is the same share of a training that has so many optimizer steps an epoch now.

    Checkpoints of older versions do not tell; they are taken as they are.

    Raises:
        UserError: the checkpoint's training had another number of steps an epoch.
    """
    if (stored := checkpoint.get(STEPS_PER_EPOCH, steps)) != steps:
        raise UserError(
            f"The checkpoint's training took {stored} optimizer steps an epoch, but now there are {steps}, so that a "
            "schedule over the training would lose its place. Resume with the data, --data.batch_size, "
            "--trainer.devices and --trainer.accumulate_grad_batches it was trained with, or say by "
            "--trainer.max_steps how long the training is."
        )


def _peak(stored: dict[str, Any] | None, group: dict[str, Any], otherwise: float) -> float:
    """The learning rate that the checkpoint's run was started with, which a schedule may since have lowered."""
    given = stored["optimizer"].get("init_args", {}).get("lr") if stored else None
    peak: float = group.get("initial_lr", otherwise) if given is None else given
    return peak


def _scale(schedule: dict[str, Any], ratio: float) -> None:
    for key in ("base_lrs", "_last_lr"):
        if key in schedule:
            schedule[key] = [rate * ratio for rate in schedule[key]]


def _refuse_change(what: str, stored: Any, given: Any) -> None:
    if stored != given:
        raise UserError(
            f"The checkpoint was trained with {what} {stored}, but {given} is given, and the one's state means nothing "
            f"to the other. Resume with the checkpoint's {what}, or train anew."
        )


def probe(optimizer: Any) -> Optimizer:
    """An optimizer of the given make on one parameter, to read its options from."""
    made: Optimizer = optimizer([torch.nn.Parameter(torch.zeros(1))])
    return made
