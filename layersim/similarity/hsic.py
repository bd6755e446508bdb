"""HSIC between the linear kernels of all pairs of layers, from blocks of Gram matrices. Letters: L layers, N samples,
D width, of each layer its own.

A Gram matrix is symmetric, so each pair of samples is visited once; all pairs of layers come from one product a block;
and memory beyond the features is bounded by the block whatever N is.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from layersim.precision import full_precision
from layersim.similarity.centering import centred

ROWS = 128  # of a block of Gram matrices: few, so that little above the diagonal is computed twice
COLUMNS = 2048  # of a block: many, so that the product is worth its overhead
FEW = 32  # samples: so few leave rounding nothing to average out over, and float64 costs nothing


@torch.no_grad()
def hsic(layers: Sequence[Tensor], *, unbiased: bool) -> Tensor:
    """HSIC of every pair of L layers, (L, L) float64, from their (N, D) features.

    `unbiased`: HSIC-1, Σ_{i≠j} Ã_ij B̃_ij / (N (N − 3)) with U-centred Gram matrices (Song et al. 2012, eq. 5; Székely
    and Rizzo 2014), N ≥ 4. Otherwise tr(K H L H) / (N − 1)² (Gretton et al. 2005), N ≥ 2. A layer's own value has the
    unit of its features to the fourth power; a constant layer's is exactly zero.
    """
    samples, device = len(layers[0]), layers[0].device
    assert samples >= (4 if unbiased else 2)
    with full_precision(device):
        # layer by layer, as one layer fits the processor's cache; in one precision, the finest that came
        finest = torch.float64 if samples <= FEW or any(x.dtype == torch.float64 for x in layers) else torch.float32
        rows = [centred(layer.to(finest).contiguous(), dim=0) for layer in layers]
        squares = torch.stack([torch.linalg.vector_norm(row, dim=1) for row in rows]).square()  # the Grams' diagonals
        # HSIC is of fourth degree: each layer is brought near one by a power of two, which rounds nothing
        exponents = torch.frexp(squares.mean(1)).exponent
        shrink = torch.ldexp(torch.ones_like(squares[:, :1]), -exponents[:, None])
        squares *= shrink
        if unbiased:
            # rows sum to zero, so a Gram row without its diagonal sums to −squares: U-centring needs no second pass
            offsets = (squares - squares.sum(1, keepdim=True) / (2 * (samples - 1))) / (samples - 2)
            total = 2 * _pair_products(rows, shrink, offsets) / (samples * (samples - 3))
        else:
            diagonal = squares.double()
            pairs = _pair_products(rows, shrink, torch.zeros_like(squares))
            total = (2 * pairs + diagonal @ diagonal.mT) / (samples - 1) ** 2
    scales = torch.ldexp(torch.ones_like(exponents, dtype=torch.float64), exponents)
    return total * scales[:, None] * scales


def _pair_products(rows: list[Tensor], shrink: Tensor, offsets: Tensor) -> Tensor:
    """Σ_{i<j} Ã^l_ij Ã^m_ij with Ã_ij = shrink · <row_i, row_j> + offset_i + offset_j, as (L, L) float64.

    `rows` L tensors (N, D), `shrink` (L, 1), `offsets` (L, N). Each row's product is added in float64.
    """
    layers, samples = offsets.shape
    total = torch.zeros(layers, layers, dtype=torch.float64, device=offsets.device)
    for top in range(0, samples, ROWS):
        bottom = min(top + ROWS, samples)
        for left in range(top, samples, COLUMNS):
            right = min(left + COLUMNS, samples)
            block = _grams([row[top:bottom] for row in rows], [row[left:right] for row in rows])
            block *= shrink[:, :, None]
            block += offsets[:, top:bottom, None]
            block += offsets[:, None, left:right]
            if left == top:
                block[:, :, : bottom - top].triu_(diagonal=1)  # each pair once, none with itself
            pairs = block.transpose(0, 1)  # (R, L, C): a product a row, as float32 loses digits over long sums
            total += (pairs @ pairs.mT).double().sum(0)
    return total


def _grams(rows: list[Tensor], columns: list[Tensor]) -> Tensor:
    """(L, R, C) inner products of L tensors (R, D) and L tensors (C, D); each pair may have its own D."""
    if rows[0].device.type != "cpu" or rows[0].dtype != torch.float32 or not torch.backends.mkldnn.enabled:
        pairs = [list(same) for _, same in groupby(zip(rows, columns, strict=True), key=lambda pair: pair[0].shape[1])]
        return torch.cat([torch.stack([r for r, _ in same]) @ torch.stack([c for _, c in same]).mT for same in pairs])
    # oneDNN multiplies float32 with the widest instructions on every maker's processors; torch's default library
    # reached half its speed on AMD, and the Gram matrices are nearly all of the work
    block = rows[0].new_empty(len(rows), len(rows[0]), len(columns[0]))
    for gram, row, column in zip(block, rows, columns, strict=True):
        gram.copy_(F.linear(row.to_mkldnn(), column.to_mkldnn()).to_dense())
    return block
