"""Objectives that change while training goes on."""

from abc import ABC

from layersim.errors import UserError
from layersim.objectives.base import Objective


class Scheduled(Objective, ABC):
    """An objective whose weights depend on how much of the training is done.

    The module tells it the number of optimizer steps, so that it follows `max_epochs` and the batch size by itself. A
    resumed training, of as many steps an epoch, goes on where the step stands in the length it has now.
    """

    _total_steps: int | None = None

    def spread_over(self, total_steps: int) -> None:
        """Fits the objective to a training of so many optimizer steps."""
        self._total_steps = max(1, total_steps)

    def progress(self, step: int) -> float:
        """Share of the training, 0 … 1, that is done before optimizer step `step` (from 0)."""
        if self._total_steps is None:
            raise UserError(f"{type(self).__name__} must be told how long the training is: call spread_over(steps).")
        return min(1.0, step / self._total_steps)
