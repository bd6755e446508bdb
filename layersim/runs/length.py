"""How long a training is, in optimizer steps."""

from math import ceil, inf
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from layersim.runs.refusals import refusing


def steps_of(trainer: Trainer) -> float:
    """Optimizer steps of the whole training, infinity or −1 where Lightning cannot tell."""
    with refusing("Lightning refuses this", "Change the option under --trainer."):
        steps, epochs = trainer.estimated_stepping_batches, trainer.max_epochs or 0
    if (scheduled := _accumulating(trainer)) is None or not 0 < steps < inf or epochs < 1:
        return steps  # else Lightning has counted with the epoch that is on
    each = (ceil(trainer.num_training_batches / scheduled.get_accumulate_grad_batches(n)) for n in range(epochs))
    return min(sum(each), trainer.max_steps if trainer.max_steps > 0 else inf)


def steps_per_epoch(trainer: Trainer) -> int:
    """Of the training's first epoch."""
    scheduled = _accumulating(trainer)
    together = trainer.accumulate_grad_batches if scheduled is None else scheduled.get_accumulate_grad_batches(0)
    return ceil(trainer.num_training_batches / together)


def _accumulating(trainer: Trainer) -> GradientAccumulationScheduler | None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((call for call in callbacks if isinstance(call, GradientAccumulationScheduler)), None)
