"""How alike are the layers? A pure function for each measure, and the metric that streams it."""

from layersim.similarity.cca import PWCCA, SVCCA, MeanCCA, mean_cca, pwcca, svcca
from layersim.similarity.directions import AngularDistance, CosineSimilarity, angular_distance, cosine
from layersim.similarity.intervals import Interval, jackknife
from layersim.similarity.linear_cka import LinearCKA, linear_cka
from layersim.similarity.measure import Measure, PairMeasure
from layersim.similarity.neighbours import CKNNA, MutualKNN, cknna, mutual_knn
from layersim.similarity.null import Null
from layersim.similarity.procrustes import Procrustes, procrustes
from layersim.similarity.properties import Properties
from layersim.similarity.rbf_cka import RBFCKA, rbf_cka
from layersim.similarity.regression import RegressionR2, regression_r2
from layersim.similarity.rsa import RSA, rsa
from layersim.similarity.streamed_cka import StreamedCKA

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
