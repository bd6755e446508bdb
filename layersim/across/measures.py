"""The measures by the names that figures and records give them."""

from difflib import get_close_matches

from layersim.errors import UserError
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
    Measure,
    MutualKNN,
    Procrustes,
    RegressionR2,
)

MEASURES: dict[str, type[Measure]] = {
    "cosine": CosineSimilarity,
    "angular": AngularDistance,
    "cka": LinearCKA,
    "rbf_cka": RBFCKA,
    "cknna": CKNNA,
    "mutual_knn": MutualKNN,
    "rsa": RSA,
    "procrustes": Procrustes,
    "mean_cca": MeanCCA,
    "svcca": SVCCA,
    "pwcca": PWCCA,
    "r2": RegressionR2,
}


def measure_class(name: str) -> type[Measure]:
    """The metric of that name.

    Raises:
        UserError: there is none; those with names alike are named.
    """
    if name not in MEASURES:
        near = get_close_matches(name.lower(), MEASURES)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"There is no measure {name!r}.{hint} Choose --measure from {', '.join(MEASURES)}.")
    return MEASURES[name]
