"""Resuming: what a checkpoint carries of the optimizer, of the training's length and of random generators, and what the
user gives now."""

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import distributed
from torch.optim import Optimizer

from layersim.errors import UserError
from layersim.runs.checkpoints import read_checkpoint

STEPS_PER_EPOCH = "steps_per_epoch"
"""A checkpoint's entry: how many optimizer steps an epoch took."""
RATES = "learning_rates"
"""A checkpoint's entry: the learning rate that each parameter group started from, which a schedule may have moved."""


EPOCH_LOSS = "epoch_loss"
"""A checkpoint's entry: (2,) the sum of the losses of the epoch's samples so far, and their number."""
FOLLOWED = "followed_metrics"
"""A checkpoint's entry: the last value of each metric that a `ReduceLROnPlateau` follows."""
RANDOM_STATES = "random_states"
"""A checkpoint's entry: where each process's random generators stood."""


def random_states() -> list[dict[str, Any]]:
    """Where the generators of torch, of the process's GPU, of NumPy and of Python stand, of every process by rank.

    As tensors and numbers, which a checkpoint is read with (`weights_only`).
    """
    _, words, gauss = random.getstate()
    _, keys, *rest = np.random.get_state(legacy=True)
    own = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (torch.from_numpy(np.asarray(keys, np.int64)), *rest),
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


def await_validation(checkpoint: dict[str, Any], *, due: bool) -> None:
    """Rewrites, in place, the place in its epoch of a checkpoint that is being saved.

    Lightning takes a checkpoint of a batch's end for one of after the validation that follows, and does not end an epoch
    whose last batch it is of. So that a resumed training does both, it is marked as one of within that validation, before
    its first batch.

    Args:
        checkpoint: as Lightning saves it.
        due: whether the batch is followed by a validation.
    """
    loops = checkpoint["loops"]["fit_loop"]
    batches, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
    at_end = batches["total"]["completed"] + 1 == batches["total"]["processed"] == batches["total"]["ready"]
    if at_end and (due or batches["is_last_batch"]):
        for count in (batches["total"], batches["current"]):
            count["completed"] += 1
        if not due:
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    done = validation["current"]
    if (at_end and due) or done["ready"] > done["completed"]:
        validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        validation["current"] = dict.fromkeys(validation["total"], 0)


def find_run(where: Path, *, last: bool) -> tuple[Path, Path]:
    """A run's `config.yaml` and its newest checkpoint that can be read.

    Args:
        where: the run's directory; with `last` an experiment's, of which the run with the newest checkpoint is taken.

    Raises:
        UserError: there is none.
    """
    found = sorted(where.glob("*/checkpoints/*.ckpt" if last else "checkpoints/*.ckpt"), key=_age)
    if found and last:
        found = [path for path in found if path.parent == found[-1].parent]
    for path in reversed(found):
        config = path.parent.parent / "config.yaml"
        try:
            checkpoint = read_checkpoint(path)
        except UserError as error:
            rank_zero_info(f"{error} The one before it is tried.")
            continue
        if not config.is_file():
            raise UserError(f"{config.parent} holds no config.yaml to go on with. Give --config and --ckpt_path {path}.")
        rank_zero_info(f"The run {config.parent} goes on from {path.name}, step {checkpoint['global_step']}.")
        return config, path
    raise UserError(
        f"There is no readable checkpoint of {'a run in' if last else 'the run'} {where} to go on from. Give --resume the "
        "directory of a run that has saved one, or train anew."
    )


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns


def earlier_rows(path: Path, checkpoint: dict[str, Any]) -> list[dict[str, str]]:
    """What the `metrics.csv` of a checkpoint's run tells of the training so far, less what will be logged again."""
    if not path.is_file():
        return []
    loops, last = checkpoint["loops"]["fit_loop"], checkpoint["global_step"] - 1
    epoch, validation = (loops[key]["total"] for key in ("epoch_progress", "epoch_loop.val_loop.batch_progress"))
    again = (("train/loss",) if epoch["processed"] < epoch["ready"] else ()) + (
        ("val/",) if validation["processed"] < validation["ready"] else ()
    )
    kept = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            filled = {name: value for name, value in row.items() if value}
            step = int(filled["step"])
            coming = "train/loss_step" not in filled and any(name.startswith(again) for name in filled)
            if step < last or (step == last and not coming):
                kept.append(filled)
    return kept


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
