"""Heads: final norm and classifier, read at any layer. Letters: K layers read, N samples, D width, C classes."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from layersim.backbones.base import Backbone
from layersim.errors import UserError, check_choice, check_share
from layersim.labels import as_classes
from layersim.metrics.calibration import against_target
from layersim.objectives.vocabulary_loss import layered_cross_entropy, weighted_sum
from layersim.outputs import LayerFeatures, Readout
from layersim.precision import widened

Norm = Literal["final", "none"]
ProbeFeatures = Literal["raw", "normed"]

MAX_LOGITS = 2**24
"""Logits alive at a time in evaluation, 64 MiB in float32: more (samples × classes) are read in chunks of samples."""
MAX_TABLE = 2**20
"""Logits (layers × samples × classes) of a training step that separate heads keep in one table, 4 MiB in float32, which
is faster; more are read classifier by classifier in chunks."""


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
        check_share("label_smoothing", label_smoothing, zero=True, one=True, remedy="Change the head's option.")
        self.label_smoothing = label_smoothing
        self.num_layers = backbone.num_layers
        self.num_classes = backbone.num_classes
        self.final_norm = backbone.final_norm

    @abstractmethod
    def logits(self, features: Tensor, layers: Sequence[int]) -> Tensor:
        """(K, N, D) features of the K `layers` (numbers 0 … L − 1) → (K, N, C) logits."""

    def parts_at(self, layer: int) -> tuple[nn.Module, nn.Module]:
        """What reads the features of a layer, 0 … L − 1: what stands in the place of the model's final norm (that norm
        itself, where nothing else does), and the classifier. Export and `layersim lens` ask for it."""
        raise UserError(
            f"{type(self).__name__} does not say what it reads a layer with, which export asks for: give it parts_at."
        )

    def unused_parameters(self, layers: Sequence[int]) -> bool:
        """Whether reading only these layers leaves some of the head's parameters without a gradient; of a head without
        `parts_at`, no."""
        if type(self).parts_at is Head.parts_at:
            return False
        read = {own for layer in layers for part in self.parts_at(layer) for own in part.parameters()}
        return any(own.requires_grad and own not in read for own in self.parameters())

    def linear_parts(self, features: Tensor, layers: Sequence[int]) -> list[tuple[Tensor, nn.Linear]] | None:
        """What linear classifiers read of (K, N, D) features, all layers at once or each in a part of its own, and the
        classifiers; None where training shall read `logits`, a table of all."""
        return None

    def losses_of(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(K,) mean cross-entropies of (K, N, C) logits with targets (N,), in nats, smoothed as in training."""
        each = cross_entropy(
            logits.flatten(0, 1),
            targets.repeat(len(logits)),
            reduction="none",
            label_smoothing=self.label_smoothing,
            ignore_index=torch.iinfo(torch.int64).min,  # -100 is a wrong label as any other, not a loss of 0
        )
        return each.view(len(logits), -1).mean(dim=1)

    def losses(self, features: Tensor, targets: Tensor, layers: Sequence[int]) -> Tensor:
        """(K,) CEk of (K, N, D) features at `layers`: the mean cross-entropy with targets (N,), in nats, taken in
        float32 or wider, each with its gradient."""
        return self._read(features, targets, layers, None)[1]

    def loss(
        self, features: Tensor, targets: Tensor, layers: Sequence[int], weights: Sequence[float] | Tensor
    ) -> Tensor:
        """Σ λk CEk, (), with the K weights λ, in one pass where classifiers are linear; a tensor gets a gradient."""
        return self._read(features, targets, layers, weights)[0]

    def _read(
        self, features: Tensor, targets: Tensor, layers: Sequence[int], weights: Sequence[float] | Tensor | None
    ) -> tuple[Tensor, Tensor]:
        parts = self.linear_parts(features, layers)
        if parts is None:
            losses = self.losses_of(self._logits(features, layers), targets)
            return losses.sum() if weights is None else weighted_sum(losses, weights), losses
        size, read = len(layers) // len(parts), []
        for place, (hidden, made) in enumerate(parts):
            own = None if weights is None else weights[place * size : (place + 1) * size]
            hidden = hidden.to(torch.promote_types(hidden.dtype, made.weight.dtype))  # half beside a wide head: lora.py
            read.append(
                layered_cross_entropy(
                    hidden, made.weight, made.bias, targets, own, label_smoothing=self.label_smoothing
                )
            )
        totals, each = zip(*read, strict=True)
        return torch.stack(totals).sum(), torch.cat(each)

    def _logits(self, features: Tensor, layers: Sequence[int]) -> Tensor:
        logits, expected = self.logits(features, layers), (*features.shape[:2], self.num_classes)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            came = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise UserError(f"Expected logits {expected} from {type(self).__name__}, (K, N, C), but got {came}.")
        return widened(logits)

    def forward(self, features: Tensor, targets: Tensor | None, layers: Sequence[int]) -> Readout:
        """The readout of (K, N, D) features at `layers`; its losses are empty where `targets` (N,) is None."""
        chunk = max(1, MAX_LOGITS // self.num_classes)
        predictions, confidences, told = [], [], []
        for place, layer in enumerate(layers):
            for start in range(0, features.shape[1], chunk):
                rows = slice(start, start + chunk)
                logits = self._logits(features[place : place + 1, rows], [layer])
                log_probabilities = logits.log_softmax(dim=-1)
                confidence, prediction = log_probabilities.max(dim=-1)
                confidences.append(confidence.exp())
                predictions.append(prediction)
                if targets is not None:
                    told.append(against_target(log_probabilities, targets[rows].unsqueeze(0)))
        shape = features.shape[:2]
        prediction, confidence = (torch.cat(parts, dim=1).view(shape) for parts in (predictions, confidences))
        if targets is None:
            none = features.new_empty(0)
            return Readout(none, prediction, confidence, none, none)
        likelihood, odds, brier = (torch.cat(parts, dim=1).view(shape) for parts in zip(*told, strict=True))
        return Readout(-likelihood.mean(dim=1), prediction, confidence, odds, brier)


class SharedHead(Head):
    """One head for all layers: the model's own final norm and classifier.

    Args:
        backbone: gives `final_norm` and `classifier`; the head *is* those modules, not a copy.
        norm: `final`: the final norm, then the classifier, at every layer. `none`: layers below the last are read raw,
            as in the paper's GPT-2 code (arXiv 2406.14479); the last layer keeps its norm, and so the model its output.
        label_smoothing: see Head.
    """

    def __init__(self, backbone: Backbone, norm: Norm = "final", *, label_smoothing: float = 0.0) -> None:
        super().__init__(backbone, label_smoothing=label_smoothing)
        check_choice("norm", norm, Norm)
        if norm == "none" and backbone.norm_before_pooling:
            raise UserError(
                "This model's final norm stands before its pooling, so features cannot be read without it. "
                "Set the head's norm to final."
            )
        self.classifier = backbone.classifier
        self.norm = norm

    def parts_at(self, layer: int) -> tuple[nn.Module, nn.Module]:
        is_raw = self.norm == "none" and layer < self.num_layers - 1
        return nn.Identity() if is_raw else self.final_norm, self.classifier

    def logits(self, features: Tensor, layers: Sequence[int]) -> Tensor:
        return self.classifier(self._normed(features, layers))

    def linear_parts(self, features: Tensor, layers: Sequence[int]) -> list[tuple[Tensor, nn.Linear]] | None:
        classifier = self.classifier
        return [(self._normed(features, layers), classifier)] if isinstance(classifier, nn.Linear) else None

    def _normed(self, features: Tensor, layers: Sequence[int]) -> Tensor:
        if self.norm == "none":
            raw = sum(layer < self.num_layers - 1 for layer in layers)
            return torch.cat([features[:raw], self.final_norm(features[raw:])])
        return self.final_norm(features)


class SeparateHeads(Head):
    """One classifier for each layer behind the model's final norm: the multi-exit baseline (arXiv 2406.14479).

    The last classifier is the model's own; those below start as copies with fresh weights.

    Args:
        backbone: gives `final_norm` and `classifier`.
        label_smoothing: see Head.
    """

    def __init__(self, backbone: Backbone, *, label_smoothing: float = 0.0) -> None:
        super().__init__(backbone, label_smoothing=label_smoothing)
        below = [_fresh_copy(backbone.classifier) for _ in range(self.num_layers - 1)]
        self.classifiers = nn.ModuleList([*below, backbone.classifier])

    def parts_at(self, layer: int) -> tuple[nn.Module, nn.Module]:
        return self.final_norm, self.classifiers[layer]

    def logits(self, features: Tensor, layers: Sequence[int]) -> Tensor:
        features = self.parts_at(0)[0](features)
        return torch.stack([self.classifiers[layer](rows) for layer, rows in zip(layers, features, strict=True)])

    def linear_parts(self, features: Tensor, layers: Sequence[int]) -> list[tuple[Tensor, nn.Linear]] | None:
        linear = [made for layer in layers if isinstance(made := self.classifiers[layer], nn.Linear)]
        if len(linear) < len(layers) or len(layers) * features.shape[1] * self.num_classes <= MAX_TABLE:
            return None
        return list(zip(torch.split(self.parts_at(0)[0](features), 1), linear, strict=True))


class LinearProbes(SeparateHeads):
    """A linear classifier for each layer, the last too, of its features as they are: what a layer *knows*, whether or
    not the model's own classifier can read it (Alain & Bengio 2016, arXiv 1610.01644). For a frozen model, see
    `freeze` of LayerwiseModule.

    Args:
        backbone: gives the width of its features and, for `normed`, its `final_norm`.
        features: `raw`: what the blocks put out; `normed`: that behind the model's final norm.
        label_smoothing: see Head.
    """

    def __init__(self, backbone: Backbone, features: ProbeFeatures = "raw", *, label_smoothing: float = 0.0) -> None:
        Head.__init__(self, backbone, label_smoothing=label_smoothing)
        check_choice("features", features, ProbeFeatures)
        self.features = features
        self.classifiers = nn.ModuleList(
            _nothing(nn.Linear(backbone.width, self.num_classes)) for _ in range(self.num_layers)
        )

    def parts_at(self, layer: int) -> tuple[nn.Module, nn.Module]:
        return nn.Identity() if self.features == "raw" else self.final_norm, self.classifiers[layer]


class Translator(nn.Linear):
    """h + A h + b, (…, D) → (…, D), the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        _nothing(self)

    def forward(self, features: Tensor) -> Tensor:
        return features + super().forward(features.to(self.weight.dtype)).to(features.dtype)


class TunedLens(SharedHead):
    """The model's own head behind an affine map for each layer below the last: what is *recoverable* of a layer.

    logits_l = classifier(final_norm(h_l + A_l h_l + b_l)), A and b 0 at first, so that it starts as the shared head;
    the last layer is read as it is (the tuned lens, arXiv 2303.08112). Trained to the last layer's own distribution
    (`KLToLast`) on a frozen model: with `freeze=backbone` the maps alone train, since final norm and classifier *are*
    the backbone's.

    Args:
        backbone: gives `final_norm`, `classifier` and the width of its features.
        label_smoothing: see Head.
    """

    def __init__(self, backbone: Backbone, *, label_smoothing: float = 0.0) -> None:
        super().__init__(backbone, label_smoothing=label_smoothing)
        self.maps = nn.ModuleList(Translator(backbone.width) for _ in range(self.num_layers - 1))

    def parts_at(self, layer: int) -> tuple[nn.Module, nn.Module]:
        norm, classifier = super().parts_at(layer)
        return nn.Sequential(self.maps[layer], norm) if layer < self.num_layers - 1 else norm, classifier

    def _normed(self, features: Tensor, layers: Sequence[int]) -> Tensor:
        translated = [
            self.maps[layer](rows) if layer < self.num_layers - 1 else rows
            for layer, rows in zip(layers, features, strict=True)
        ]
        return super()._normed(torch.stack(translated), layers)


def _nothing(linear: nn.Linear) -> nn.Linear:
    """The map with weights of 0: for every input the same."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _fresh_copy(classifier: nn.Module) -> nn.Module:
    """A copy with weights drawn anew, so that separate heads do not start in agreement."""
    fresh = copy.deepcopy(classifier).requires_grad_()  # whatever is frozen of the model
    for module in fresh.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return fresh


def with_classes(features: LayerFeatures, classes: int) -> LayerFeatures:
    """The same, for what reads them: targets that are told as (N,) int64 classes, in whatever form they came.

    Raises:
        UserError: they are none of 0 … C − 1, whose bounds are looked at where that waits for no device.
    """
    targets: Any = features.targets
    if targets is None:
        return features
    look = getattr(targets, "is_cpu", True) and not torch.compiler.is_compiling()
    return replace(features, targets=as_classes(targets, features.values.shape[1], classes, look=look))
