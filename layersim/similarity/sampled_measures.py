"""Measures that need all of their samples at once: metrics that keep as many as they may, then call the function."""

from layersim.similarity.cca import cca_pairs, mean_cca, pwcca, pwcca_pairs, svcca
from layersim.similarity.measure import Measure
from layersim.similarity.neighbours import cknna, cknna_pairs, mutual_knn, mutual_pairs
from layersim.similarity.procrustes import procrustes, procrustes_pairs
from layersim.similarity.properties import Properties, Reach
from layersim.similarity.rbf_cka import RBFEstimator, rbf_cka, rbf_pairs
from layersim.similarity.regression import regression_pairs, regression_r2
from layersim.similarity.rsa import Distance, rsa, rsa_pairs


class MeanCCA(Measure):
    """`mean_cca` over batches and processes, of `max_samples` samples at most."""

    label = "mean CCA"
    value_range = (0, 1)
    function = staticmethod(mean_cca)
    pairs = staticmethod(cca_pairs)
    properties = Properties(orthogonal="own", linear="own", translation="own")


class SVCCA(Measure):
    """`svcca` over batches and processes, of `max_samples` samples at most."""

    label = "SVCCA"
    value_range = (0, 1)
    function = staticmethod(svcca)
    pairs = staticmethod(cca_pairs)
    properties = Properties(orthogonal="own", translation="own")

    def __init__(self, *, variance: float = 0.99, max_samples: int | None = 4096) -> None:
        """See `svcca`. Raises UserError for a share out of bounds, or `max_samples` below 3."""
        self.arguments = {"variance": variance}
        super().__init__(max_samples=max_samples)


class PWCCA(Measure):
    """`pwcca` over batches and processes, of `max_samples` samples at most."""

    label = "PWCCA"
    value_range = (0, 1)
    function = staticmethod(pwcca)
    pairs = staticmethod(pwcca_pairs)
    properties = Properties(orthogonal="none", translation="own", symmetric=False)


class _OfNeighbours(Measure):
    """A measure of each sample's k nearest neighbours."""

    properties = Properties(orthogonal="own")

    def __init__(self, *, k: int = 10, max_samples: int | None = 1024) -> None:
        """See the function. Raises UserError for k below 1, or `max_samples` below what k needs."""
        self.arguments = {"k": k}
        super().__init__(max_samples=max_samples)


class MutualKNN(_OfNeighbours):
    """`mutual_knn` over batches and processes, of `max_samples` samples at most (k + 2 at least): the value depends on
    their number."""

    label = "mutual nearest neighbours"
    value_range = (0, 1)
    function = staticmethod(mutual_knn)
    pairs = staticmethod(mutual_pairs)


class CKNNA(_OfNeighbours):
    """`cknna` over batches and processes, of `max_samples` samples at most (k + 1 at least): the value depends on their
    number."""

    label = "CKNNA"
    value_range = (-1, 1)
    function = staticmethod(cknna)
    pairs = staticmethod(cknna_pairs)


class Procrustes(Measure):
    """`procrustes` over batches and processes, of `max_samples` samples at most."""

    function = staticmethod(procrustes)
    pairs = staticmethod(procrustes_pairs)
    label = "Procrustes similarity"
    value_range = (0, 1)
    properties = Properties(orthogonal="own", translation="own")


class RBFCKA(Measure):
    """`rbf_cka` over batches and processes, of `max_samples` samples at most: N² numbers are kept for each layer."""

    function = staticmethod(rbf_cka)
    pairs = staticmethod(rbf_pairs)
    label = "RBF CKA"
    value_range = (-1, 1)
    properties = Properties(orthogonal="own", translation="own")

    def __init__(
        self, *, bandwidth: float = 1.0, estimator: RBFEstimator = "biased", max_samples: int | None = 1024
    ) -> None:
        """See `rbf_cka`. Raises UserError for an unknown estimator, a bandwidth that is not positive, or `max_samples`
        below what it needs."""
        self.arguments = {"bandwidth": bandwidth, "estimator": estimator}
        super().__init__(max_samples=max_samples)
        self.value_range = (0 if estimator == "biased" else -1, 1)


class RegressionR2(Measure):
    """`regression_r2` over batches and processes, of `max_samples` samples at most."""

    function = staticmethod(regression_r2)
    pairs = staticmethod(regression_pairs)
    label = "regression R²"
    value_range = (0, 1)
    properties = Properties(orthogonal="own", translation="own", symmetric=False)


class RSA(Measure):
    """`rsa` over batches and processes, of `max_samples` samples at most: N² / 2 numbers are kept for each layer."""

    function = staticmethod(rsa)
    pairs = staticmethod(rsa_pairs)
    label = "RSA"
    value_range = (-1, 1)

    def __init__(self, *, distance: Distance = "euclidean", max_samples: int | None = 1024) -> None:
        """See `rsa`. Raises UserError for an unknown distance, or `max_samples` below 3."""
        self.arguments = {"distance": distance}
        super().__init__(max_samples=max_samples)

    @property
    def properties(self) -> Properties:
        own: Reach = "own" if self.arguments["distance"] == "euclidean" else "none"
        return Properties(orthogonal=own, translation=own)
