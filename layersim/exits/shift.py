"""How much oftener new inputs come than among the calibration samples: density ratios from unlabelled data.

Letters: N calibration samples, M new ones, F features of a sample.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.exits.promises import Promise

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""scikit-learn's C of the classifiers that are tried."""
_FOLDS = 5
_SURE = 0.001
"""A check of the ratio that would fail by chance once in so many."""


@dataclass(frozen=True)
class Shift:
    """Density ratios p_new(x) / p_calibration(x) of N calibration samples, up to a common factor.

    Raises:
        UserError: ratios that are negative, not finite or all zero, or a greatest one that is not above 0.
    """

    weights: Tensor
    """(N,) float64; those above the greatest count as the greatest."""
    greatest: float
    """What a new sample's ratio is at most; the more it exceeds the mean, the less the N samples say."""
    new_samples: int = 0
    """M."""
    told_apart: float = 0.5
    """How well a classifier tells new inputs from calibration inputs, on samples that it was not fitted on: the area
    under its ROC curve; 0.5 where nothing has shifted."""

    def __post_init__(self) -> None:
        weights = torch.as_tensor(self.weights, dtype=torch.float64)
        if not (weights.ndim == 1 and len(weights) and weights.isfinite().all() and weights.amin() >= 0):
            raise UserError(f"Expected a finite density ratio of 0 or more for each sample, but got {weights}.")
        if not (0 < self.greatest < torch.inf and weights.any()):
            raise UserError(f"Expected density ratios that reach above 0, but got at most {self.greatest:g}.")
        object.__setattr__(self, "weights", weights.clamp(max=self.greatest))

    @property
    def effective_samples(self) -> float:
        """(Σ w)² / Σ w²: so many samples of the new data would tell a mean as sharply."""
        return (self.weights.sum().square() / self.weights.square().sum()).item()

    def summary(self) -> dict[str, float]:
        """Four numbers for a record."""
        names = ("effective_samples", "greatest", "new_samples", "told_apart")
        return {name: getattr(self, name) for name in names}

    def weighted(self, losses: Tensor, target: float) -> Tensor:
        """(N,) numbers, at most 1, whose mean is at most the target where the new data's risk is: target + w / W (loss
        − target), W the greatest ratio. E[w (loss − target)] has the sign of the new risk − target.

        So each promise of `promises.py` is one of new data when it is asked of these numbers. For `crc` it is that of
        weighted conformal risk control (arXiv 2208.02814, section 4; 1904.06019) with W in the new sample's place.
        """
        return target + self.weights / self.greatest * (losses - target)

    def bound(self, promise: Promise, losses: Tensor) -> float:
        """What a promise says of the new data's risk at most, where the ratio's mean is that of the N samples."""
        above = promise.bound(self.weighted(losses, promise.target)) - promise.target
        return promise.target + above * self.greatest / self.weights.mean().item()


def estimate_shift(known: Tensor, new: Tensor, *, seed: int = 0) -> Shift:
    """The shift from features of calibration samples (N, F) to those of new ones (M, F), without a label.

    A logistic regression tells the two apart; the odds that it gives are the ratio. Every sample's are those of one of
    five classifiers that were fitted without it, all with the penalty of least cross-entropy there. Two checks on these
    odds, each of which fails by chance once in a thousand where the odds hold: over the calibration samples the ratio
    has mean 1, to a tenth, or a part of the new data lies where no calibration sample does; and in ten groups by odds
    as many samples are new as the odds say.

    Warns:
        UserWarning: the second check fails: the ratio, and so the promise, is only about right.

    Raises:
        UserError: fewer than ten samples of either kind, or hardly any that differ, features that are not finite or not
            alike, or new data that the calibration samples do not reach.
    """
    known, new = (torch.as_tensor(each, dtype=torch.float64, device="cpu").detach() for each in (known, new))
    comparable = known.ndim == 2 and known.shape[1:] == new.shape[1:] != (0,)
    if not comparable or min(len(known), len(new)) < 2 * _FOLDS:
        raise UserError(
            f"Expected ten samples or more of old and new data, with as many features, but got {tuple(known.shape)} "
            f"and {tuple(new.shape)}. Change --shifted_data."
        )
    features, fresh = torch.cat([known, new]).numpy(), np.repeat([0, 1], [len(known), len(new)])
    if not np.isfinite(features).all():
        raise UserError("Expected finite features to compare old and new data by, but some are NaN or infinite.")
    from sklearn.metrics import roc_auc_score  # here, because --help need not wait for scikit-learn

    log_odds = _log_odds(features, fresh, seed)
    told_apart = float(roc_auc_score(fresh, log_odds))
    ratio = np.exp(log_odds) * len(known) / len(new)
    weights, greatest = ratio[fresh == 0], float(ratio.max())
    if weights.mean() < 0.9 - 3.1 * weights.std() / len(known) ** 0.5:
        raise UserError(
            f"A part of the new data lies where no calibration sample does: the density ratio has mean "
            f"{weights.mean():.2g} over these, in place of 1, and a classifier tells old from new with an area of "
            f"{told_apart:.3f} under its ROC curve. No weights help there: calibrate on samples like the new ones, or "
            "watch the stream by an alarm. Change --shifted_data."
        )
    if (chance := _miscalibrated(log_odds, fresh)) < _SURE:
        warnings.warn(
            "The density ratio is not what the new data ask for: odds that hold would look so with probability "
            f"{chance:.1g}. The promise is only about right; more new samples, or an alarm, would tell more.",
            stacklevel=2,
        )
    return Shift(torch.from_numpy(weights), greatest, len(new), told_apart)


def _log_odds(features: np.ndarray, fresh: np.ndarray, seed: int) -> np.ndarray:
    """(N + M,) of being new, each by a classifier that was fitted on four fifths without it, and without its doubles:
    new data may hold the calibration samples themselves."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    alike = StandardScaler().fit_transform(features).round(4)  # whatever unit they are in
    same = np.unique(alike, axis=0, return_inverse=True)[1].ravel()
    fold = np.random.default_rng(seed).permutation(same.max() + 1)[same] % _FOLDS
    if any(len(np.unique(fold[fresh == kind])) < 2 for kind in (0, 1)):
        raise UserError("Too few of the old or of the new data differ to tell them apart. Change --shifted_data.")
    folds = PredefinedSplit(fold)
    found = []
    for penalty in PENALTIES:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=5000))
        found.append(cross_val_predict(model, features, fresh, cv=folds, method="decision_function"))
    return min(found, key=lambda odds: np.logaddexp(0, np.where(fresh == 1, -odds, odds)).mean())


def _miscalibrated(log_odds: np.ndarray, fresh: np.ndarray) -> float:
    """The p-value of Hosmer and Lemeshow (1980), of ten groups of samples by their odds."""
    from scipy.special import chdtrc, expit  # type: ignore[import-untyped]

    any_order = np.random.default_rng(0).permutation(len(fresh))  # of equal odds
    groups = np.array_split(any_order[np.argsort(log_odds[any_order], kind="stable")], 10)
    likely = expit(log_odds)
    missed = sum(
        (fresh[group].sum() - likely[group].sum()) ** 2 / (likely[group] * (1 - likely[group])).sum()
        for group in groups
    )
    return float(chdtrc(len(groups), missed))
