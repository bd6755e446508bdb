"""Distillation: layers that learn from the last layer's distribution. Letters: K layers, N samples, C classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from layersim.errors import UserError


@dataclass(frozen=True)
class Distillation:
    """What of a layer's loss comes from the last layer's distribution and not from the labels.

    Raises:
        UserError: an option out of its range.
    """

    alpha: float
    """α in 0 … 1, its share."""
    temperature: float
    """τ > 0, by which both layers' logits are divided for it."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"Expected alpha in 0 … 1, but got {self.alpha}. Change the objective's option.")
        if not (isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"Expected temperature > 0, but got {self.temperature}. Change the objective's option.")


def divergences(logits: Tensor, temperature: float) -> Tensor:
    """(K,) τ² KL(p_K ‖ p_k) in nats, mean over the samples of (K, N, C) logits, p the softmax at temperature τ.

    The last layer's p_K is a constant: gradients are those of the other layers, and with τ² they keep their size
    whatever the temperature is (Hinton et al. 2015, §2.1).
    """
    log_p = (logits / temperature).log_softmax(dim=-1)
    teacher = log_p[-1].detach()
    return temperature**2 * (teacher.exp() * (teacher - log_p)).sum(dim=-1).mean(dim=1)


def distilled_loss(
    logits: Tensor,
    targets: Tensor,
    weights: Sequence[float],
    distillation: Distillation,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """λK CE(K) + Σ λk ((1 − α) CE(k) + α τ² KL(p_K ‖ p_k)) over k < K, of (K, N, C) logits, the last layer last.

    Args:
        targets: (N,) classes.
        weights: the K numbers λ.
        label_smoothing: ε of the cross-entropies.
    """
    layers = len(logits)
    each = cross_entropy(
        logits.flatten(0, 1), targets.repeat(layers), reduction="none", label_smoothing=label_smoothing
    )
    taught = logits.new_tensor([*[distillation.alpha] * (layers - 1), 0.0])
    losses = (1 - taught) * each.view(layers, -1).mean(dim=1) + taught * divergences(logits, distillation.temperature)
    return torch.dot(losses, losses.new_tensor(weights))
