"""Features whose path through the layers is known. Letters: L layers, N samples, D width, C classes."""

import torch
from torch import Tensor


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def straight(layers: int = 5, samples: int = 40, width: int = 8) -> Tensor:
    """(L, N, D) on each sample's own segment from a start to an end, with steps of unequal length."""
    share = (torch.arange(layers, dtype=torch.float64) / (layers - 1)) ** 2
    start, end = drawn(2, samples, width)
    return start + share[:, None, None] * (end - start)


def simplex(classes: int, width: int) -> Tensor:
    """(C, D) vertices of an equiangular tight frame, of length one, in a direction of space drawn at random."""
    corners = torch.eye(classes, dtype=torch.float64) - 1 / classes
    turn = torch.linalg.qr(drawn(width, width)).Q[:, :classes]
    return (corners / corners.norm(dim=1, keepdim=True)) @ turn.mT
