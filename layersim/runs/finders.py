"""What Lightning's BatchSizeFinder and LearningRateFinder find, put where the training and its record look for it."""

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CyclicLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from layersim.errors import UserError

FINDERS = (BatchSizeFinder, LearningRateFinder)


def is_searching(trainer: Trainer) -> bool:
    """Whether a finder is trying values; it has the trainer's callbacks put away meanwhile."""
    return not any(isinstance(callback, FINDERS) for callback in trainer.callbacks) and any(  # type: ignore[attr-defined]
        type(callback).__module__.startswith("lightning.pytorch.tuner")
        for callback in trainer.callbacks  # type: ignore[attr-defined]
    )


def start_from(schedule: LRScheduler | ReduceLROnPlateau, rates: list[float]) -> None:
    """Makes a schedule, and the optimizer that it moves, what they were had the optimizer's groups these rates.

    Raises:
        UserError: a schedule of rates of its own, or of several schedules.
    """
    if isinstance(schedule, ReduceLROnPlateau):
        return  # it lowers whatever rate there is
    if isinstance(schedule, OneCycleLR | CyclicLR | SequentialLR | ChainedScheduler):
        raise UserError(
            f"LearningRateFinder found a rate, but {type(schedule).__name__} does not start from the optimizer's "
            "rate alone. Leave the finder out of --trainer.callbacks, or change --model.lr_scheduler."
        )
    moved = zip(schedule.get_last_lr(), schedule.base_lrs, rates, strict=True)
    schedule._last_lr = [last * rate / base for last, base, rate in moved]
    schedule.base_lrs = [*rates]
    for group, rate, now in zip(schedule.optimizer.param_groups, rates, schedule._last_lr, strict=True):
        group["initial_lr"], group["lr"] = rate, now


def found(trainer: Trainer, config: Namespace) -> dict[str, Any]:
    """What finders have changed of a run's configuration, by the options' whole flags."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    values: dict[str, Any] = {}
    if any(isinstance(callback, BatchSizeFinder) for callback in callbacks):
        values["data.init_args.batch_size"] = trainer.datamodule.batch_size  # type: ignore[attr-defined]
    if any(isinstance(callback, LearningRateFinder) for callback in callbacks):
        values["model.optimizer.init_args.lr"] = trainer.lightning_module.learning_rate
    return {flag: value for flag, value in values.items() if config.get(flag, value) != value}


def without_finders(callbacks: list[Any]) -> list[Any]:
    """Callbacks as a configuration names them, without those whose work is done."""
    done = {finder.__name__ for finder in FINDERS}
    return [callback for callback in callbacks if callback.class_path.rpartition(".")[2] not in done]


def steps_of(trainer: Trainer) -> float:
    """Optimizer steps of the whole training, infinity or −1 where Lightning cannot tell.

    Raises:
        UserError: Lightning refuses an option when it is asked.
    """
    try:
        return trainer.estimated_stepping_batches
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"Lightning refuses this: {error} Change the option under --trainer.") from error
