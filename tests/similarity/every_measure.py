"""Every measure, under options that a few dozen samples suffice for."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from layersim.similarity import (
    CKNNA,
    PWCCA,
    RBFCKA,
    RSA,
    SVCCA,
    AngularDistance,
    CosineSimilarity,
    LinearCKA,
    MeanCCA,
    MutualKNN,
    Procrustes,
    RegressionR2,
)
from layersim.similarity.measure import Measure

METRICS: dict[str, Callable[..., Measure]] = {
    "cosine none": partial(CosineSimilarity, centering="none"),
    "cosine samples": CosineSimilarity,
    "cosine components": partial(CosineSimilarity, centering="components"),
    "angular none": AngularDistance,
    "angular samples": partial(AngularDistance, centering="samples"),
    "angular components": partial(AngularDistance, centering="components"),
    "cka minibatch": partial(LinearCKA, batch_size=40),
    "cka debiased": partial(LinearCKA, estimator="debiased"),
    "cka biased": partial(LinearCKA, estimator="biased"),
    "rbf cka biased": RBFCKA,
    "rbf cka debiased": partial(RBFCKA, estimator="debiased", bandwidth=0.5),
    "cknna": partial(CKNNA, k=5),
    "mutual knn": partial(MutualKNN, k=5),
    "rsa euclidean": RSA,
    "rsa correlation": partial(RSA, distance="correlation"),
    "procrustes": Procrustes,
    "mean cca": MeanCCA,
    "svcca": partial(SVCCA, variance=0.9),
    "pwcca": PWCCA,
    "regression": RegressionR2,
}


def function_of(metric: Measure) -> Callable[..., Tensor]:
    """The pure function with the metric's options."""
    return partial(metric.function, **metric.arguments)
