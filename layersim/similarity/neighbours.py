"""Who is near whom at a layer. Letters: N samples, D width."""

import torch
from torch import Tensor

from layersim.errors import UserError


def require_neighbours(k: int) -> None:
    """Raises UserError where `k` is no number of neighbours."""
    if k < 1:
        raise UserError(f"k: expected at least 1 neighbour, got {k}")


def cosine_kernel(layer: Tensor) -> Tensor | None:
    """(N, N) cosines of (N, D) features; None where a vector has no direction, or all are the same."""
    largest = layer.abs().amax(1, keepdim=True)
    if (largest == 0).any():
        return None
    units = layer / largest
    units = units / torch.linalg.vector_norm(units, dim=1, keepdim=True)
    return None if torch.equal(units, units[:1].expand_as(units)) else units @ units.mT


def nearest(kernel: Tensor, k: int) -> Tensor:
    """(N, N) bool: whether j is among the k samples with the largest K_ij, i itself left out."""
    others = kernel.clone().fill_diagonal_(-torch.inf)
    return torch.zeros_like(kernel, dtype=torch.bool).scatter_(1, others.topk(k, dim=1).indices, True)
