"""What a threshold does to the samples of a table. Letters: L layers, N samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

from layersim.exits.policies import Policy, exit_layer
from layersim.exits.table import ExitTable


@dataclass(frozen=True)
class ExitSummary:
    """What leaving by a threshold did to N samples."""

    policy: str
    threshold: float | None
    """None: every sample goes through all layers."""
    samples: int
    mean_exit_layer: float
    """Counted from 1."""
    layer_gain: float
    """L / mean exit layer: how many times fewer layers were gone through."""
    exits: tuple[int, ...]
    """L counts: samples that left at each layer."""
    accuracy: float
    """Of the predictions at the exits."""
    full_accuracy: float
    """Of the last layer's."""
    loss: float
    """Cross-entropy at the exits, mean, in nats."""
    full_loss: float
    """The last layer's."""

    def describe(self) -> str:
        """Two sentences: where samples left, and what became of accuracy and loss."""
        return (
            f"Of {self.samples} samples the mean exit layer is {self.mean_exit_layer:.2f} of {len(self.exits)}, "
            f"{self.layer_gain:.2f} times fewer layers. "
            f"Accuracy is {self.accuracy:.4f} against {self.full_accuracy:.4f} with all layers, "
            f"cross-entropy {self.loss:.4f} against {self.full_loss:.4f}."
        )


def summarize(table: ExitTable, policy: Policy, threshold: float | None) -> ExitSummary:
    """What leaving by the policy's threshold, None for never, does to the samples of a table."""
    exits = exit_layer(table.scores, threshold)
    num_layers = table.scores.shape[0]
    mean = mean_exit_layer(exits)
    right = (table.predictions == table.targets).double()
    losses = table.losses.double()
    return ExitSummary(
        policy=policy.name,
        threshold=threshold,
        samples=len(exits),
        mean_exit_layer=mean,
        layer_gain=num_layers / mean,
        exits=tuple(torch.bincount(exits, minlength=num_layers).tolist()),
        accuracy=at_exits(right, exits).mean().item(),
        full_accuracy=right[-1].mean().item(),
        loss=at_exits(losses, exits).mean().item(),
        full_loss=losses[-1].mean().item(),
    )


def mean_exit_layer(exits: Tensor) -> float:
    """The mean of (N,) exit layers 0 … L − 1, counted from 1."""
    return exits.double().mean().item() + 1


def at_exits(values: Tensor, exits: Tensor) -> Tensor:
    """(L, N) values of all layers at the samples' exits (N,): (N,)."""
    return values.gather(0, exits.unsqueeze(0)).squeeze(0)
