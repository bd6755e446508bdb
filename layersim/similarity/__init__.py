"""How alike are the layers? One measure a file: a pure function first, then the metric that streams it."""

from layersim.similarity.angular import AngularDistance, angular_distance
from layersim.similarity.cknna import CKNNA, cknna
from layersim.similarity.cosine import CosineSimilarity, cosine
from layersim.similarity.intervals import Interval, jackknife
from layersim.similarity.linear_cka import LinearCKA, linear_cka
from layersim.similarity.mean_cca import MeanCCA, mean_cca
from layersim.similarity.mutual_knn import MutualKNN, mutual_knn
from layersim.similarity.procrustes import Procrustes, procrustes
from layersim.similarity.properties import Properties
from layersim.similarity.pwcca import PWCCA, pwcca
from layersim.similarity.rbf_cka import RBFCKA, rbf_cka
from layersim.similarity.regression import RegressionR2, regression_r2
from layersim.similarity.rsa import RSA, rsa
from layersim.similarity.svcca import SVCCA, svcca

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
    "MutualKNN",
    "Procrustes",
    "Properties",
    "RegressionR2",
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
