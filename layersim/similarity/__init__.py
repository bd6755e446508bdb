"""How alike are the layers? A pure function for each measure, and the metric that streams it.

The functions need torch alone. The metrics need torchmetrics, and are imported when the first of them is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from layersim.similarity.cca import mean_cca, pwcca, svcca
from layersim.similarity.directions import angular_distance, cosine
from layersim.similarity.intervals import Interval, jackknife
from layersim.similarity.linear_cka import linear_cka
from layersim.similarity.neighbours import cknna, mutual_knn
from layersim.similarity.null import Null
from layersim.similarity.procrustes import procrustes
from layersim.similarity.properties import Properties
from layersim.similarity.rbf_cka import rbf_cka
from layersim.similarity.regression import regression_r2
from layersim.similarity.rsa import rsa

if TYPE_CHECKING:
    from layersim.similarity.grouped_cka import LinearCKA
    from layersim.similarity.measure import Measure, PairMeasure
    from layersim.similarity.sampled_measures import (
        CKNNA,
        PWCCA,
        RBFCKA,
        RSA,
        SVCCA,
        MeanCCA,
        MutualKNN,
        Procrustes,
        RegressionR2,
    )
    from layersim.similarity.streamed_cka import StreamedCKA
    from layersim.similarity.streamed_directions import AngularDistance, CosineSimilarity

__all__ = [
    "CKNNA",
    "PWCCA",
    "RBFCKA",
    "RSA",
    "SVCCA",
    "AngularDistance",
    "CosineSimilarity",
    "Interval",
    "LinearCKA",
    "MeanCCA",
    "Measure",
    "MutualKNN",
    "Null",
    "PairMeasure",
    "Procrustes",
    "Properties",
    "RegressionR2",
    "StreamedCKA",
    "angular_distance",
    "cknna",
    "cosine",
    "jackknife",
    "linear_cka",
    "mean_cca",
    "mutual_knn",
    "procrustes",
    "pwcca",
    "rbf_cka",
    "regression_r2",
    "rsa",
    "svcca",
]

_METRICS = ("measure", "sampled_measures", "grouped_cka", "streamed_cka", "streamed_directions")


def __getattr__(name: str) -> Any:
    """One metric brings all: a recipe's short names are looked for among the subclasses of `Measure` that there are."""
    if name in __all__:
        for module in [import_module(f"layersim.similarity.{home}") for home in _METRICS]:
            globals().update({each: vars(module)[each] for each in __all__ if each in vars(module)})
        return globals()[name]
    raise AttributeError(f"module 'layersim.similarity' has no attribute {name!r}")
