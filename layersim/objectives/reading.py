"""What was read of a model's layers, computed when it is asked for. Letters: L layers, K of them read, N samples,
D width, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from layersim.errors import UserError
from layersim.objectives.vocabulary_loss import CHUNK_LOGITS, weighted_sum
from layersim.precision import widened

MAX_LOGITS = 2**27
"""Logits (layers × samples × classes) of all layers at once, 512 MiB in float32, and as much again for their
probabilities and gradients each: more are refused."""


@dataclass(frozen=True)
class Step:
    """Where a training stands."""

    number: int = 0
    """Of the optimizer, from 0."""
    batch: int = 0
    """Of one process, from 0 and over all epochs; several make a step where gradients accumulate."""
    length: int | None = None
    """Optimizer steps of the whole training; told to objectives that follow it."""
    seed: int = 0
    """The run's, the same on all processes, for whatever a step draws."""

    @property
    def progress(self) -> float:
        """Share of the training, 0 … 1, that is done before this step."""
        if self.length is None:
            raise UserError("The training's length is not known. Set `follows_length` of the objective to True.")
        return min(1.0, self.number / max(1, self.length))


@dataclass
class Reading:
    """The layers that an objective asked for, of one batch."""

    head: Any
    """What reads the features (`layersim.heads.Head`)."""
    features: Tensor
    """(K, N, D) of the K layers."""
    targets: Tensor
    """(N,) integer classes."""
    layers: list[int]
    """The K layers, 0 … L − 1, ascending."""
    num_layers: int
    """L."""
    step: Step | None = None
    """Where the training stands; None in evaluation."""
    known_losses: Tensor | None = None
    """(K,) if they are known already, as in evaluation."""
    _logits: Tensor | None = None

    @property
    def losses(self) -> Tensor:
        """(K,) cross-entropies in nats, mean over the samples, each with its gradient.

        At vocabulary scale their backward reads the classifier a second time: where the weights are known before the
        losses, `loss` is cheaper.
        """
        if self.known_losses is None:
            if self._logits is None:
                self.known_losses = self.head.losses(self.features, self.targets, self.layers)
            else:
                self.known_losses = self.head.losses_of(self._logits, self.targets)
        return self.known_losses

    def logits(self) -> Tensor:
        """(K, N, C) logits in float32 or wider, kept for all layers at once.

        Raises:
            UserError: more of them than fit.
        """
        layers, samples, classes = len(self.layers), len(self.targets), self.head.num_classes
        if (times := layers * samples * classes / MAX_LOGITS) > 1:
            raise UserError(
                f"The objective keeps the logits of all layers at once, here {layers} layers × {samples} samples × "
                f"{classes} classes, {times:.1f} times what layersim allows. Lower --data.batch_size (or block_size), "
                "or choose an objective that needs no such table, such as Aligned."
            )
        if self._logits is None:
            self._logits = widened(self.head.logits(self.features, self.layers))
        return self._logits

    def divergences(self, temperature: float = 1.0) -> Tensor:
        """(K,) τ² KL(p_K ‖ p_k) in nats, mean over the samples, p the softmax of the logits at temperature τ.

        p_K, of the last layer that was read, is a constant: gradients are those of the other layers, and with τ² they
        keep their size whatever the temperature is (Hinton et al. 2015, §2.1). Where samples × classes are many, a
        chunk's logits are all that is alive: the backward reads them again.
        """
        rows = max(1, CHUNK_LOGITS // (len(self.layers) * self.head.num_classes))
        if self._logits is not None or len(self.targets) <= rows:
            return _divergences(self.logits(), temperature).mean(dim=1)

        def of(features: Tensor) -> Tensor:
            return _divergences(widened(self.head.logits(features, self.layers)), temperature).sum(dim=1)

        sums = [checkpoint(of, part, use_reentrant=False) for part in torch.split(self.features, rows, dim=1)]
        return torch.stack(sums).sum(dim=0) / len(self.targets)

    def loss(self, weights: Sequence[float] | Tensor) -> Tensor:
        """Σ λl CEl, (), in one pass over the classifier however large it is.

        Args:
            weights: (L,) numbers λ, one for each layer of the model, of which those that are zero are not read; or a
                tensor, or some among the numbers, such as learned weights, which get a gradient.

        Raises:
            UserError: weights of another number, or for a layer that was not asked for.
        """
        if not isinstance(weights, Tensor) and any(isinstance(weight, Tensor) for weight in weights):
            dtype = torch.promote_types(self.features.dtype, torch.float32)
            weights = torch.stack([torch.as_tensor(each, dtype=dtype, device=self.features.device) for each in weights])
        if len(weights) != self.num_layers:
            raise UserError(f"Expected {self.num_layers} layer weights, but the objective gives {len(weights)}.")
        counted = self.layers if isinstance(weights, Tensor) else weighted_layers(weights)
        if missing := [layer for layer in counted if layer not in self.layers]:
            raise UserError(f"The objective weighs layers {missing}, but reads {self.layers}. Change its `layers`.")
        if len(counted) < self.num_layers:
            weights = weights[counted] if isinstance(weights, Tensor) else [weights[layer] for layer in counted]
        places = slice(None) if counted == self.layers else [self.layers.index(layer) for layer in counted]
        if self.known_losses is not None or self._logits is not None:
            return weighted_sum(self.losses[places], weights)
        return self.head.loss(self.features[places], self.targets, counted, weights)


def weighted_layers(weights: Sequence[float]) -> list[int]:
    """The layers (0 … L − 1, ascending) whose weight is not zero."""
    return [layer for layer, weight in enumerate(weights) if weight != 0]


def _divergences(logits: Tensor, temperature: float) -> Tensor:
    """(K, N) τ² KL(p_K ‖ p_k) of (K, N, C) logits."""
    log_p = (logits / temperature).log_softmax(dim=-1)
    teacher = log_p[-1].detach()
    return temperature**2 * (teacher.exp() * (teacher - log_p)).sum(dim=-1)
