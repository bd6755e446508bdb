"""Resuming: what a checkpoint carries of the optimizer, of the training's length and of random generators, and what the
user gives now."""

import random
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.optim import Optimizer

from layersim.errors import UserError

STEPS_PER_EPOCH = "steps_per_epoch"
"""A checkpoint's entry: how many optimizer steps an epoch took."""
RATES = "learning_rates"
"""A checkpoint's entry: the learning rate that each parameter group started from, which a schedule may have moved."""


EPOCH_LOSS = "epoch_loss"
"""A checkpoint's entry: (2,) the sum of the losses of the epoch's samples so far, and their number."""
RANDOM_STATES = "random_states"
"""A checkpoint's entry: where each process's random generators stood."""


def random_states() -> list[dict[str, Any]]:
    """Where the generators of torch, of the process's GPU, of NumPy and of Python stand, of every process by rank.

    As tensors and numbers, which a checkpoint is read with (`weights_only`).
    """
    _, words, gauss = random.getstate()
    _, keys, *rest = np.random.get_state()
    own = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": (torch.from_numpy(keys.astype(np.int64)), *rest),
        "python": (torch.tensor(words), gauss),
    }
    if not (distributed.is_available() and distributed.is_initialized()):
        return [own]
    states: list[dict[str, Any]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(states, own)
    return states


def put_back(state: dict[str, Any]) -> None:
    """Sets this process's random generators to where one of `random_states` tells."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    words, gauss = state["python"]
    random.setstate((3, tuple(words.tolist()), gauss))


def starting_rates(optimizer: Optimizer) -> list[float]:
    """The rates of an optimizer's groups where its schedule, if it has one, starts."""
    return [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]


def prefer_given_options(checkpoint: dict[str, Any], given: Optimizer, hparams: dict[str, Any]) -> None:
    """Rewrites a checkpoint's optimizer and scheduler states, in place, to the options of the optimizer that was given.

    Group by group: momenta and counts stay. A changed learning rate moves the whole schedule by its ratio to the old
    one.

    Args:
        checkpoint: as Lightning saves it, with `RATES`; the same rates as now are taken for those that it does not tell.
        given: an optimizer with the options that training shall go on with, and with its schedule.
        hparams: the module's hyper-parameters now; compared to the checkpoint's where both were made by the command.

    Raises:
        UserError: another optimizer, other groups or another schedule than the checkpoint's: its state means nothing to
            them.
    """
    stored = checkpoint.get("hyper_parameters") or {}
    if stored and hparams:
        _refuse_change("optimizer", stored["optimizer"]["class_path"], hparams["optimizer"]["class_path"])
        for what in ("lr_scheduler", "lr_scheduler_interval"):
            _refuse_change(what, stored.get(what), hparams.get(what))
    peaks = checkpoint.get(RATES) or starting_rates(given)
    moved = {"params", "lr", "initial_lr"}
    if any(schedule.get("cycle_momentum") for schedule in checkpoint.get("lr_schedulers", [])):
        moved |= {"momentum", "betas"}
    for state in checkpoint.get("optimizer_states", []):
        groups = state["param_groups"]
        _refuse_change("parameter groups", [*map(_told, groups)], [*map(_told, given.param_groups)])
        for number, (group, now, rate) in enumerate(zip(groups, given.param_groups, starting_rates(given), strict=True)):
            options = {key: value for key, value in now.items() if key not in moved}
            if missing := options.keys() - group.keys():
                raise UserError(
                    f"The checkpoint's optimizer has no {', '.join(sorted(missing))}: it is of another kind than "
                    f"{type(given).__name__}. Resume with the optimizer it was trained with."
                )
            if rate != (peak := peaks[number]):
                if peak == 0:
                    raise UserError("The checkpoint was trained with a learning rate of 0, which no factor raises.")
                group["lr"] *= rate / peak
                if "initial_lr" in group:
                    group["initial_lr"] = rate
                for schedule in checkpoint.get("lr_schedulers", []):
                    for key in {"base_lrs", "_last_lr"} & schedule.keys():
                        schedule[key][number] *= rate / peak
            group.update(options)


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


def _told(group: dict[str, Any]) -> str:
    return f"{group.get('name', 'one')} of {len(group['params'])} parameters"


def _refuse_change(what: str, stored: Any, given: Any) -> None:
    if stored != given:
        raise UserError(
            f"The checkpoint was trained with {what} {stored}, but {given} is given, and the one's state means nothing "
            f"to the other. Resume with the checkpoint's {what}, or train anew."
        )
