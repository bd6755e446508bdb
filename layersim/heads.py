"""Heads: final norm and classifier, read at any layer. Letters: K layers read, N samples, D width, C classes."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from layersim.backbones.base import Backbone
from layersim.errors import UserError
from layersim.objectives.distillation import Distillation, distilled_loss
from layersim.objectives.vocabulary_loss import layered_cross_entropy
from layersim.outputs import Readout
from layersim.precision import widened

MAX_LOGITS = 2**24
"""Logits alive at a time in evaluation, 64 MiB in float32: more (samples × classes) are read in chunks of samples."""
MAX_TABLE = 2**20
"""Logits (layers × samples × classes) of a training step that separate heads keep in one table, 4 MiB in float32, which
is faster; more are read classifier by classifier in chunks."""
MAX_DISTILLED_LOGITS = 2**27
"""Logits (layers × samples × classes) of a training step that distils, 512 MiB in float32, and as much again for their
probabilities and gradients each: more are refused."""


class Head(nn.Module, ABC):
    """Reads features at given layers: losses, predictions and confidences.

    Evaluation keeps no table of all logits. Nor does training, where classifiers are linear and the table would be
    large; through a classifier of several parts it keeps the logits of all layers that the step reads.

    Args:
        backbone: whose features it reads.
        label_smoothing: ε in 0 … 1, of the loss that training minimises: targets are (1 − ε) one-hot + ε / C (Szegedy
            et al. 2016). What evaluation measures is never smoothed.
    """

    def __init__(self, backbone: Backbone, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise UserError(f"Expected label_smoothing in 0 … 1, but got {label_smoothing}. Change the head's option.")
        self.label_smoothing = label_smoothing
        self.num_layers = backbone.num_layers
        self.num_classes = backbone.num_classes

    @abstractmethod
    def logits(self, features: Tensor, layers: Sequence[int]) -> Tensor:
        """(K, N, D) features of the K `layers` (numbers 0 … L − 1) → (K, N, C) logits."""

    def unused_parameters(self, layers: Sequence[int]) -> bool:
        """Whether reading only these layers leaves some of the head's parameters without a gradient."""
        return False

    def loss(self, features: Tensor, targets: Tensor, layers: Sequence[int], weights: Sequence[float]) -> Tensor:
        """Σ λk CEk of (K, N, D) features at `layers` with their K weights λ: what training minimises.

        CEk is the mean cross-entropy with targets (N,), in nats, taken in float32 or wider. Layers of weight zero are
        not read.
        """
        read = [place for place, weight in enumerate(weights) if weight > 0]
        if len(read) < len(weights):
            features = features[read]
        return self._loss(features, targets, [layers[place] for place in read], [weights[place] for place in read])

    def distilled_loss(
        self,
        features: Tensor,
        targets: Tensor,
        layers: Sequence[int],
        weights: Sequence[float],
        distillation: Distillation,
    ) -> Tensor:
        """What training minimises where the last of `layers` teaches the others (objectives/distillation.py).

        Raises:
            UserError: more logits than are kept at once.
        """
        count = len(layers) * len(targets) * self.num_classes
        if count > MAX_DISTILLED_LOGITS:
            raise UserError(
                f"Distillation keeps the logits of all layers at once, here {len(layers)} layers × {len(targets)} "
                f"samples × {self.num_classes} classes, {count / MAX_DISTILLED_LOGITS:.1f} times what layersim allows. "
                "Lower --data.batch_size (or block_size), or choose the objective Aligned, which needs no such table."
            )
        logits = widened(self.logits(features, layers))
        return distilled_loss(logits, targets, weights, distillation, label_smoothing=self.label_smoothing)

    def _loss(self, features: Tensor, targets: Tensor, layers: Sequence[int], weights: Sequence[float]) -> Tensor:
        logits = widened(self.logits(features, layers))
        each = cross_entropy(
            logits.flatten(0, 1), targets.repeat(len(layers)), reduction="none", label_smoothing=self.label_smoothing
        )
        losses = each.view(len(layers), -1).mean(dim=1)
        return torch.dot(losses, losses.new_tensor(weights))

    def forward(self, features: Tensor, targets: Tensor | None, layers: Sequence[int]) -> Readout:
        """The readout of (K, N, D) features at `layers`; its losses are empty where `targets` (N,) is None."""
        chunk = max(1, MAX_LOGITS // self.num_classes)
        predictions, confidences, log_likelihoods, log_odds = [], [], [], []
        for place, layer in enumerate(layers):
            for start in range(0, features.shape[1], chunk):
                rows = slice(start, start + chunk)
                logits = widened(self.logits(features[place : place + 1, rows], [layer]))
                log_probabilities = logits.log_softmax(dim=-1)
                confidence, prediction = log_probabilities.max(dim=-1)
                confidences.append(confidence.exp())
                predictions.append(prediction)
                if targets is not None:
                    own = targets[rows].view(1, -1, 1)
                    others = logits.scatter(-1, own, -torch.inf).logsumexp(dim=-1)
                    log_likelihoods.append(log_probabilities.gather(-1, own).squeeze(-1))
                    log_odds.append(logits.gather(-1, own).squeeze(-1) - others)
        shape = features.shape[:2]
        prediction, confidence = (torch.cat(parts, dim=1).view(shape) for parts in (predictions, confidences))
        if targets is None:
            return Readout(features.new_empty(0), prediction, confidence, features.new_empty(0))
        likelihood, odds = (torch.cat(parts, dim=1).view(shape) for parts in (log_likelihoods, log_odds))
        return Readout(-likelihood.mean(dim=1), prediction, confidence, odds)


class SharedHead(Head):
    """One head for all layers: the model's own final norm and classifier.

    Args:
        backbone: gives `final_norm` and `classifier`; the head *is* those modules, not a copy.
        norm: `final`: the final norm, then the classifier, at every layer. `none`: layers below the last are read raw,
            as in the paper's GPT-2 code (arXiv 2406.14479); the last layer keeps its norm, and so the model its output.
        label_smoothing: see Head.
    """

    def __init__(
        self, backbone: Backbone, norm: Literal["final", "none"] = "final", *, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(backbone, label_smoothing=label_smoothing)
        if norm == "none" and backbone.norm_before_pooling:
            raise UserError(
                "This model's final norm stands before its pooling, so features cannot be read without it. "
                "Set the head's norm to final."
            )
        self.final_norm = backbone.final_norm
        self.classifier = backbone.classifier
        self.norm = norm

    def logits(self, features: Tensor, layers: Sequence[int]) -> Tensor:
        logits: Tensor = self.classifier(self._normed(features, layers))
        return logits

    def _loss(self, features: Tensor, targets: Tensor, layers: Sequence[int], weights: Sequence[float]) -> Tensor:
        if not isinstance(self.classifier, nn.Linear):
            return super()._loss(features, targets, layers, weights)
        weight, bias = self.classifier.weight, self.classifier.bias
        hidden = self._normed(features, layers)
        hidden = hidden.to(torch.promote_types(hidden.dtype, weight.dtype))  # half beside a wide head: see lora.py
        return layered_cross_entropy(hidden, weight, bias, targets, weights, label_smoothing=self.label_smoothing)[0]

    def _normed(self, features: Tensor, layers: Sequence[int]) -> Tensor:
        if self.norm == "none":
            raw = sum(layer < self.num_layers - 1 for layer in layers)
            return torch.cat([features[:raw], self.final_norm(features[raw:])])
        normed: Tensor = self.final_norm(features)
        return normed


class SeparateHeads(Head):
    """One classifier for each layer behind the model's final norm: the multi-exit baseline (arXiv 2406.14479).

    The last classifier is the model's own; those below start as copies with fresh weights.

    Args:
        backbone: gives `final_norm` and `classifier`.
        label_smoothing: see Head.
    """

    def __init__(self, backbone: Backbone, *, label_smoothing: float = 0.0) -> None:
        super().__init__(backbone, label_smoothing=label_smoothing)
        self.final_norm = backbone.final_norm
        below = [_fresh_copy(backbone.classifier) for _ in range(self.num_layers - 1)]
        self.classifiers = nn.ModuleList([*below, backbone.classifier])

    def logits(self, features: Tensor, layers: Sequence[int]) -> Tensor:
        features = self.final_norm(features)
        return torch.stack([self.classifiers[layer](rows) for layer, rows in zip(layers, features, strict=True)])

    def _loss(self, features: Tensor, targets: Tensor, layers: Sequence[int], weights: Sequence[float]) -> Tensor:
        linear = [made for layer in layers if isinstance(made := self.classifiers[layer], nn.Linear)]
        if len(linear) < len(layers) or len(layers) * len(targets) * self.num_classes <= MAX_TABLE:
            return super()._loss(features, targets, layers, weights)
        smoothing = self.label_smoothing
        losses = [
            layered_cross_entropy(rows, made.weight, made.bias, targets, [weight], label_smoothing=smoothing)[0]
            for rows, made, weight in zip(self.final_norm(features).split(1), linear, weights, strict=True)
        ]
        return torch.stack(losses).sum()

    def unused_parameters(self, layers: Sequence[int]) -> bool:
        return len(layers) < self.num_layers


def _fresh_copy(classifier: nn.Module) -> nn.Module:
    """A copy with weights drawn anew, so that separate heads do not start in agreement."""
    fresh = copy.deepcopy(classifier)
    for module in fresh.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return fresh
