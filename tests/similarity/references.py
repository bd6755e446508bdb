"""The measures by their definitions in float64, with loops instead of blocks: slow, and easy to check by eye."""

import torch
from torch import Tensor


def reference_cosine(features: Tensor, centering: str) -> Tensor:
    x = features.double()
    if centering == "samples":
        x = x - x.mean(1, keepdim=True)
    elif centering == "components":
        x = x - x.mean(2, keepdim=True)
    x = x / x.norm(dim=2, keepdim=True)
    return torch.einsum("lnd,mnd->lm", x, x) / x.shape[1]


def reference_hsic1(k: Tensor, m: Tensor) -> float:
    """Song et al. 2012, equation 5, as printed."""
    n = len(k)
    k, m, one = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0), torch.ones(n, dtype=torch.float64)
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((k @ m).trace() + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def reference_hsic0(k: Tensor, m: Tensor) -> float:
    """Gretton et al. 2005: tr(K H L H) / (n − 1)²."""
    n = len(k)
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    return float((k @ h @ m @ h).trace()) / (n - 1) ** 2


def reference_cka(features: Tensor, estimator: str, batch_size: int = 64) -> Tensor:
    """Kornblith et al. 2019 on translated features; translation changes no value, and keeps float64's digits."""
    hsic = reference_hsic0 if estimator == "biased" else reference_hsic1
    groups = features.double().split(batch_size, dim=1) if estimator == "minibatch" else [features.double()]
    layers = len(features)
    total = torch.zeros(layers, layers, dtype=torch.float64)
    for group in groups:
        if group.shape[1] < 4 and estimator != "biased":
            continue
        x = group - group.mean(1, keepdim=True)
        grams = x @ x.mT
        for i in range(layers):
            for j in range(layers):
                total[i, j] += hsic(grams[i], grams[j])
    roots = total.diagonal().sqrt()
    return total / torch.outer(roots, roots)


def related_layers(samples: int, width: int, layers: int = 4, seed: int = 0) -> Tensor:
    """(L, N, D) features of which each layer adds to the one before, as residual blocks do."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layers, samples, width, generator=generator).cumsum(0)
