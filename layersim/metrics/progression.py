"""How features go from the first layer to the last: the paper's mathematics, measured on one sample of the data.

Letters: L layers, N samples, D width.
"""

import json
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.metrics.class_means import Classes, class_paths, neural_collapse
from layersim.metrics.monotonicity import Rise, cosine_to_last, rise
from layersim.metrics.straightness import straightness
from layersim.similarity import cosine, linear_cka
from layersim.similarity.directions import Centering
from layersim.similarity.features import Layers, as_features, require_samples

LEAST = 4
"""Samples: debiased CKA divides by N − 3."""


@torch.no_grad()
def progression(features: Layers, classes: Classes | None, *, centering: Centering = "samples") -> dict[str, Any]:
    """What the path of (L, N, D) features looks like; means over the samples.

    Args:
        features: of any floating dtype.
        classes: (N,) integers; None where there are none, or, as with tokens, too many to have means.
        centering: of the cosines, see `cosine`; all else is measured on the features as they are.

    Raises:
        UserError: fewer than 4 samples, or an unknown centering.

    Where a sample has no value, as with features that are not finite, the numbers it goes into are NaN, and one
    UserWarning names the layers.
    """
    features = as_features(features)
    samples = features.shape[1]
    require_samples(samples, LEAST, "the progression over layers")
    path = straightness(features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of layers without a value: one warning below is for all
        agree = agreement(cosine(features, centering=centering), linear_cka(features, estimator="debiased"))
    record: dict[str, Any] = {
        "samples": samples,
        "centering": centering,
        **rise_record("cosine", rise(cosine_to_last(features, centering=centering))),
        "path_over_chord": path.path_over_chord.mean().item(),
        "angle": path.angles.mean(dim=1).tolist(),
        "distance_to_segment": path.distances.mean(dim=1).tolist(),
        "skip_over_residual": path.skip_over_residual.mean(dim=1).tolist(),
        "cosine_cka": vars(agree),
    }
    if classes is not None:
        if collapse := neural_collapse(features, classes):
            record["neural_collapse"] = _plain(collapse)
        record["class_paths"] = _plain(class_paths(features, classes))
    _warn_undefined(record, features)
    return record


def rise_record(name: str, measured: Rise) -> dict[str, Any]:
    """A `Rise` of the quantity `name`, in the words of the record."""
    return {
        name: measured.mean.tolist(),
        f"{name}_rises": measured.throughout,
        f"{name}_rises_by_step": measured.steps.tolist(),
    }


@dataclass(frozen=True)
class Agreement:
    """Correlation over the pairs of layers l < m, −1 … 1; NaN where it is undefined."""

    pearson: float
    spearman: float
    """Pearson's of the ranks, equal values sharing their mean rank."""


def agreement(first: Tensor, second: Tensor) -> Agreement:
    """How the (L, L) similarities by one measure go with those by another (Jiang et al. 2025, arXiv 2406.14479, compare
    COS with CKA so).

    Each pair of layers counts once, no layer's with itself. NaN with fewer than two pairs, where all pairs of a matrix
    are equal, or where one is not finite.

    Raises:
        UserError: not two L × L matrices.
    """
    first, second = (torch.as_tensor(matrix, dtype=torch.float64).detach() for matrix in (first, second))
    if first.ndim != 2 or first.shape[0] != first.shape[1] or first.shape != second.shape:
        raise UserError(f"Expected two L × L matrices, but got shapes {tuple(first.shape)} and {tuple(second.shape)}.")
    from scipy import stats  # type: ignore[import-untyped]  # slow to import, and seldom needed

    rows, columns = torch.triu_indices(len(first), len(first), offset=1)
    pairs = [matrix.cpu()[rows, columns].numpy() for matrix in (first, second)]
    if not all(math.isfinite(values.sum()) and len(set(values)) > 1 for values in pairs):
        return Agreement(math.nan, math.nan)
    return Agreement(float(stats.pearsonr(*pairs).statistic), float(stats.spearmanr(*pairs).statistic))


def _plain(result: object) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, Tensor) else value for key, value in vars(result).items()}


def _warn_undefined(record: dict[str, Any], features: Tensor) -> None:
    missing = [name for name, value in record.items() if "NaN" in json.dumps(value)]  # wherever in it
    if not missing:
        return
    broken = [layer for layer, values in enumerate(features, start=1) if not values.isfinite().all()]
    still = [layer for layer, values in enumerate(features.diff(dim=0), start=1) if not values.any(dim=1).all()]
    if broken:
        why = f"features are not finite at layer {', '.join(map(str, broken))}"
    elif still:
        why = f"a sample's features do not change from layer {', '.join(map(str, still))} to the next"
    else:
        why = "a length is zero, all features of a layer are the same, or there are too few layers to correlate"
    warnings.warn(f"progression is NaN in {', '.join(missing)}: {why} (layers count from 1)", UserWarning, stacklevel=3)
