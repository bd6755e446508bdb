"""Linear probes: how much of a task can be read off frozen features by a linear classifier.

Letters: N samples, D width, C classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from layersim.data.splits import Integers, hold_out
from layersim.errors import UserError

Floats = NDArray[np.float64]

PENALTIES = (1e3, 1e2, 1e1, 1.0, 1e-1)
"""λ of ½ λ ‖W‖² beside the summed cross-entropy: the inverse of scikit-learn's C."""
HELD_OUT = 0.2
"""Share of the training samples on which the penalty is chosen."""


@dataclass(frozen=True)
class Probe:
    """A linear probe, as a classifier of features as they are."""

    classes: Integers
    """(C,) that it tells apart, ascending."""
    weight: Floats
    """(C, D)"""
    bias: Floats
    """(C,)"""
    penalty: float
    """The λ that was chosen."""

    def accuracy(self, features: Floats, targets: Integers) -> float:
        """Of (N, D) features with (N,) classes."""
        likely = (features @ self.weight.T + self.bias).argmax(axis=1)
        return float((self.classes[likely] == targets).mean())

    def loss(self, features: Floats, targets: Integers) -> float:
        """Mean cross-entropy, in nats, of (N, D) features with (N,) classes of those that it tells apart."""
        logits = features @ self.weight.T + self.bias
        own = logits[np.arange(len(targets)), np.searchsorted(self.classes, targets)]
        return float((np.logaddexp.reduce(logits, axis=1) - own).mean())


def fit_probe(features: ArrayLike, targets: ArrayLike, *, seed: int = 0, option: str = "--to_data") -> Probe:
    """Multinomial logistic regression on frozen features, as scikit-learn fits it (L-BFGS, in float64).

    Features are standardised by the samples' mean and standard deviation; those that do not vary tell nothing and get
    no weight. Of `PENALTIES` the one with the least cross-entropy on a stratified fifth of the samples is taken, and
    the probe fitted again to all of them. Accuracy would not do: it hardly tells a probe that is too sure of itself.

    Args:
        features: (N, D) of the training samples.
        targets: (N,) classes; arrays or tensors, as are the features.
        seed: of the fifth.
        option: that gives the data, for errors.

    Raises:
        UserError: fewer than two classes, fewer samples than classes, too few to hold a fifth out, or features that are
            not finite.
    """
    features = torch.as_tensor(features).detach().cpu().double().numpy()  # of bfloat16 as well
    targets = torch.as_tensor(targets).cpu().numpy()
    if len(np.unique(targets)) < 2:
        raise UserError(f"A linear probe needs two classes or more in its training data. Change {option}.")
    if not np.isfinite(features).all():
        raise UserError("A linear probe needs finite features, but the model gives NaN or infinity at some layer.")
    fitted, held = hold_out(targets, int(np.ceil(HELD_OUT * len(targets))), seed=seed, remedy=option)
    losses = [
        _fitted(features[fitted], targets[fitted], penalty).loss(features[held], targets[held]) for penalty in PENALTIES
    ]
    return _fitted(features, targets, PENALTIES[int(np.argmin(losses))])


def standardisation(features: Floats) -> tuple[Floats, Floats]:
    """The mean of (…, N, D) features, (…, 1, D), and the factor that makes their spread 1; 0 where nothing varies."""
    mean, spread = features.mean(axis=-2, keepdims=True), features.std(axis=-2, keepdims=True)
    varies = np.ptp(features, axis=-2, keepdims=True) > 0  # exactly, where a spread is rounded
    return mean, np.divide(1, spread, out=np.zeros_like(spread), where=varies)


def _fitted(features: Floats, targets: Integers, penalty: float) -> Probe:
    from sklearn.linear_model import LogisticRegression  # here, because --help need not wait for scikit-learn

    mean, scale = standardisation(features)
    model = LogisticRegression(C=1 / penalty, max_iter=5000).fit((features - mean) * scale, targets)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # of two classes scikit-learn tells the second's alone
        weight, bias = np.concatenate([0 * weight, weight]), np.append(0 * bias, bias)
    weight = weight * scale
    return Probe(model.classes_, weight, bias - weight @ mean[0], penalty)
