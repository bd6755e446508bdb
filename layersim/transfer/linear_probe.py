"""Linear probes: how much of a task can be read off frozen features by a linear classifier.

Letters: N samples, D width.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layersim.data.splits import Integers, hold_out
from layersim.errors import UserError

Floats = NDArray[np.float64]

PENALTIES = (1e3, 1e2, 1e1, 1.0, 1e-1)
"""λ of ½ λ ‖W‖² beside the summed cross-entropy: the inverse of scikit-learn's C."""
HELD_OUT = 0.2
"""Share of the training samples on which the penalty is chosen."""


@dataclass(frozen=True)
class Probe:
    """What a linear probe came to."""

    accuracy: float
    """On samples that it was not fitted to."""
    penalty: float
    """The λ that was chosen."""


def linear_probe(
    features: Floats, targets: Integers, test_features: Floats, test_targets: Integers, *, seed: int = 0
) -> Probe:
    """Multinomial logistic regression on frozen features, as scikit-learn fits it (L-BFGS, in float64).

    Features are standardised by the training samples' mean and standard deviation; those that do not vary tell nothing
    and are left out. Of `PENALTIES` the one with the best accuracy on a stratified fifth of the training samples is
    taken, the strongest of equals, and the probe fitted again to all of them.

    Args:
        features: (N, D) of the training samples.
        targets: (N,) classes.
        test_features: (M, D) of others.
        test_targets: (M,).
        seed: of the fifth.

    Raises:
        UserError: fewer than two classes, too few samples to hold a fifth out, or features that are not finite.
    """
    if len(np.unique(targets)) < 2:
        raise UserError("A linear probe needs two classes or more in its training data. Change --to_data.")
    if not (np.isfinite(features).all() and np.isfinite(test_features).all()):
        raise UserError("A linear probe needs finite features, but the model gives NaN or infinity at some layer.")
    fitted, held = hold_out(targets, int(np.ceil(HELD_OUT * len(targets))), seed=seed, remedy="--to_data")
    scores = [
        _accuracy(features[fitted], targets[fitted], features[held], targets[held], penalty) for penalty in PENALTIES
    ]
    penalty = PENALTIES[int(np.argmax(scores))]
    return Probe(_accuracy(features, targets, test_features, test_targets, penalty), penalty)


def _accuracy(features: Floats, targets: Integers, others: Floats, other_targets: Integers, penalty: float) -> float:
    from sklearn.linear_model import LogisticRegression  # here, because --help need not wait for scikit-learn

    mean, spread = features.mean(axis=0), features.std(axis=0)
    varies = spread > 0
    scaled, others = ((values[:, varies] - mean[varies]) / spread[varies] for values in (features, others))
    model = LogisticRegression(C=1 / penalty, max_iter=5000).fit(scaled, targets)
    return float(model.score(others, other_targets))
