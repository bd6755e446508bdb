"""Exit policies: how sure is a layer, and is it sure enough to leave? Letters: L layers, n samples, D width, C classes.

A policy is a score, the higher the surer, and a sample leaves at the first layer whose score reaches the threshold.
Raising the threshold never makes a sample leave earlier, whatever the policy: calibration rests on that.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, log
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.precision import widened


@dataclass(frozen=True)
class View:
    """What is known of n samples when a layer has been read."""

    logits: Tensor
    """(n, C) in float32 or wider, after the layer's temperature."""
    features: Tensor
    """(n, D) this layer's features, before the final norm."""
    previous: Tensor | None
    """(n, D) the features of the layer before; None at the first layer."""
    streak: Tensor
    """(n,) int64: layers in a row, this one included, that gave this prediction."""


def next_streak(predictions: Tensor, before: Tensor | None, streak: Tensor | None) -> Tensor:
    """(n,) layers in a row that gave these predictions, this layer included.

    Args:
        predictions: (n,) this layer's.
        before: (n,) those of the layer before; None at the first layer.
        streak: (n,) the streak at the layer before; None at the first layer.
    """
    if before is None or streak is None:
        return torch.ones_like(predictions, dtype=torch.int64)
    return torch.where(predictions == before, streak + 1, 1)


class Seen:
    """What a policy was shown of samples, or tokens, on their way."""

    features: Tensor | None = None
    predictions: Tensor | None = None
    streak: Tensor | None = None

    def view(self, logits: Tensor | None, features: Tensor, reads: str) -> View:
        """At the next layer that is read, with what the policy reads; what it does not is made up."""
        before, self.features = self.features, features
        if logits is None or reads != "predictions":
            nothing = torch.zeros_like(features[:, :1])
            return View(nothing if logits is None else logits, features, before, nothing)
        predictions = logits.argmax(dim=-1)
        self.streak = next_streak(predictions, self.predictions, self.streak)
        self.predictions = predictions
        return View(logits, features, before, self.streak)

    def keep(self, stays: Tensor) -> None:
        """The others have left."""
        for name in ("features", "predictions", "streak"):
            if (known := getattr(self, name)) is not None:
                setattr(self, name, known[stays])


class Policy(ABC):
    """A rule to leave: how sure a layer is (score), and a threshold that it must reach. The higher the surer."""

    name: ClassVar[str]
    reads: ClassVar[Literal["logits", "predictions", "features"]] = "logits"
    """What the score asks for: the streak comes of predictions, and these of logits."""

    @abstractmethod
    def score(self, view: View) -> Tensor:
        """(n,) float: how sure this layer is of each sample, which leaves from the threshold up; of NaN never. A
        sample's score depends on nothing else in the batch."""

    def bounds(self, num_classes: int, num_layers: int) -> tuple[float, float]:
        """The least and the greatest score, and so the range of thresholds: 0 … 1 where nothing else is said."""
        return 0.0, 1.0

    def check(self, threshold: float | None, num_classes: int, num_layers: int) -> None:
        """Refuses a threshold outside the scores' range, with a UserError that says the range; None is in any."""
        low, high = self.bounds(num_classes, num_layers)
        if threshold is not None and not low <= threshold <= high:
            raise UserError(
                f"Expected a threshold of {low:g} … {high:g} for the policy {self.name} ({num_classes} classes, "
                f"{num_layers} layers), but got {threshold:g}. Change the threshold."
            )

    def thresholds(self, num_classes: int, num_layers: int) -> list[float]:
        """The thresholds to choose from, ascending: fixed by the policy, never by the data that choose among them."""
        return threshold_grid(*self.bounds(num_classes, num_layers))


def check_policy(policy: object, threshold: object, num_classes: int, num_layers: int) -> None:
    """Refuses, with a UserError, what is no policy, or no threshold of it."""
    if not isinstance(policy, Policy):
        raise UserError(f"Expected a policy, such as layersim.exits.policies.Confidence(), but got {policy!r}.")
    if isinstance(threshold, str):
        raise UserError(f"Expected a number or None as threshold, but got {threshold!r}.")
    policy.check(None if threshold is None else float(threshold), num_classes, num_layers)  # type: ignore[arg-type]


def threshold_grid(low: float, high: float) -> list[float]:
    """A thousand thresholds from the least score to the greatest, ascending.

    Their distance to the greatest shrinks by the same ratio from one to the next, down to a millionth of the range,
    because trained models crowd their scores there. Each is a float32, so that scores in float32 and in float64 agree
    on who has reached it.
    """
    distances = (high - low) * torch.logspace(0, -6, 999, dtype=torch.float64)
    return sorted({*(high - distances).float().tolist(), high})


def rising(given: Sequence[float], what: str = "thresholds to choose from", remedy: str = "") -> list[float]:
    """The numbers of a list, array or tensor; a UserError, where they are none or do not rise, says `what` they are."""
    numbers: list[float] = np.atleast_1d(given).tolist()
    if not numbers or any(not lower < upper for lower, upper in pairwise(numbers)):
        told = ", ".join(map(str, numbers)) or "none"
        raise UserError(f"Expected {what}, each above the one before, but got {told}.{remedy}")
    return numbers


class Confidence(Policy):
    """The greatest probability, in [1/C, 1]: the exit rule of arXiv 2406.14479."""

    name = "confidence"

    def score(self, view: View) -> Tensor:
        return view.logits.softmax(dim=-1).amax(dim=-1)

    def bounds(self, num_classes: int, num_layers: int) -> tuple[float, float]:
        # The float32 just below 1 / C: equal probabilities, rounded, must still reach it.
        return float(np.nextafter(np.float32(1 / num_classes), np.float32(0))), 1.0


class Margin(Policy):
    """The greatest probability less the second greatest, in [0, 1]."""

    name = "margin"

    def score(self, view: View) -> Tensor:
        two: Tensor = view.logits.softmax(dim=-1).topk(2, dim=-1).values
        return two[..., 0] - two[..., 1]


class Entropy(Policy):
    """1 − H / ln C of the probabilities' entropy H in nats, in [0, 1]: 0 where all classes are equally likely.

    DeeBERT (arXiv 2004.12993) leaves where H < S: its S is the threshold 1 − S / ln C here.
    """

    name = "entropy"

    def score(self, view: View) -> Tensor:
        entropy: Tensor = torch.special.entr(view.logits.softmax(dim=-1)).sum(dim=-1)
        return 1 - entropy / log(view.logits.shape[-1])


class Patience(Policy):
    """Layers in a row that gave this prediction, 1 … L: with threshold k a sample leaves at the k-th equal prediction.

    PABEE (arXiv 2006.04152) counts the repetitions, so its patience t is the threshold t + 1 here.
    """

    name = "patience"
    reads = "predictions"

    def score(self, view: View) -> Tensor:
        return view.streak.float()

    def bounds(self, num_classes: int, num_layers: int) -> tuple[float, float]:
        return 1.0, float(num_layers)

    def check(self, threshold: float | None, num_classes: int, num_layers: int) -> None:
        super().check(threshold, num_classes, num_layers)
        if threshold is not None and threshold != int(threshold):
            raise UserError(
                f"Expected a whole number of layers as threshold of the policy patience, but got {threshold:g}."
            )

    def thresholds(self, num_classes: int, num_layers: int) -> list[float]:
        """1 … L."""
        return [float(layers) for layers in range(1, num_layers + 1)]


class Similarity(Policy):
    """Cosine of a layer's features and those of the layer before, not centred, in [−1, 1]; −inf at the first layer.

    NaN, which never leaves, where either is all zeros and so has no direction.
    """

    name = "similarity"
    reads = "features"

    def score(self, view: View) -> Tensor:
        features = widened(view.features)
        if view.previous is None:
            return features.new_full(features.shape[:1], -inf)
        return (_direction(features) * _direction(widened(view.previous))).sum(dim=-1)

    def bounds(self, num_classes: int, num_layers: int) -> tuple[float, float]:
        return -1.0, 1.0


def _direction(features: Tensor) -> Tensor:
    return features / torch.linalg.vector_norm(features, dim=-1, keepdim=True)


POLICIES: dict[str, type[Policy]] = {
    policy.name: policy for policy in (Confidence, Margin, Entropy, Patience, Similarity)
}


def exit_layer(scores: Tensor, threshold: float | None) -> Tensor:
    """The layer at which each sample leaves, (N,) numbers 0 … L − 1: the first whose score reaches the threshold.

    The last layer always lets go; with threshold None only the last does.

    Args:
        scores: (L, N) a policy's, first layer first.
    """
    last = scores.shape[0] - 1
    if threshold is None:
        return torch.full(scores.shape[1:], last, device=scores.device)
    reached = scores >= threshold
    reached[last] = True
    return reached.int().argmax(dim=0)
