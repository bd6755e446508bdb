"""Learning-rate schedules that know how many steps the training takes."""

from math import cos, pi
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from layersim.errors import UserError


class WarmupDecay(LambdaLR):
    """A linear rise over the first share of all steps, then a fall to zero at the last one.

    The module tells it the number of steps, so that it follows `max_epochs` and the batch size by itself.

    Args:
        optimizer: whose learning rates are the peak.
        warmup: share of the steps that rise, 0 … 1.
        decay: shape of the fall: `cosine`, `linear`, or `constant` for none.
    """

    def __init__(
        self, optimizer: Optimizer, warmup: float = 0.1, decay: Literal["cosine", "linear", "constant"] = "cosine"
    ) -> None:
        if not 0 <= warmup <= 1:
            raise UserError(f"Expected a warmup share of 0 … 1, but got {warmup}.")
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
