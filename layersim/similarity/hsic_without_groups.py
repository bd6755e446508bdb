"""HSIC of all samples but a group, for every group at the cost of one HSIC. Letters: L layers, N samples, J groups, D
width, of each layer its own.

Without a group the sums over pairs of samples are the whole's less the group's, so each pair is multiplied once. And as
the kernel is linear, row sums of a Gram matrix are products with sums of samples.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from layersim.precision import full_precision
from layersim.similarity.centering import centred
from layersim.similarity.hsic import inner_products, near_one


@torch.no_grad()
def hsic_without_groups(layers: Sequence[Tensor], sizes: list[int], *, unbiased: bool) -> Tensor:
    """HSIC (J, L, L) float64 of L layers (N, D) whose samples stand group by group, without each group in turn.

    As `hsic` of what is left (Song et al. 2012, eq. 5, or Gretton et al. 2005), but in units of each layer's own and of
    each number of samples, which a ratio as CKA does not see. From float32 products unless a layer is float64.
    """
    count, samples = len(sizes), len(layers[0])
    finest = torch.promote_types(torch.float32, max((x.dtype for x in layers), key=lambda dtype: dtype.itemsize))
    with full_precision(layers[0].device):
        near_one(rows := [centred(layer.to(finest).contiguous(), dim=0) for layer in layers])
        between = _pairs_of_groups(rows, sizes)
        numbers = torch.arange(count).repeat_interleave(torch.tensor(sizes))
        of_group = torch.nn.functional.one_hot(numbers, count).to(between)  # (N, J)
        diagonal = torch.stack([row.double().square().sum(1) for row in rows])
        row_sums = torch.stack([_row_sums(row.double(), of_group) for row in rows])
    row_sums -= diagonal[:, :, None] if unbiased else 0
    row_sums *= 1 - of_group
    left = samples - of_group.sum(0)[:, None, None]
    pairs = between.sum((0, 1)) - 2 * between.sum(1) + between[range(count), range(count)]
    if not unbiased:
        pairs += torch.einsum("ln,mn,nj->jlm", diagonal, diagonal, 1 - of_group)
    products = torch.einsum("lnj,mnj->jlm", row_sums, row_sums)
    totals = row_sums.sum(1).mT
    outer = totals[:, :, None] * totals[:, None, :]
    if unbiased:
        return pairs - 2 / (left - 2) * products + outer / ((left - 1) * (left - 2))
    return pairs - 2 / left * products + outer / left**2


def _row_sums(row: Tensor, of_group: Tensor) -> Tensor:
    """(N, J) sums of each sample's inner products with all samples that are not in a group."""
    sums: Tensor = row @ (row.sum(0) - of_group.mT @ row).mT
    return sums


def _pairs_of_groups(rows: list[Tensor], sizes: list[int]) -> Tensor:
    """(J, J, L, L) float64: Σ K^l_ik K^m_ik over samples i of one group and k ≠ i of another."""
    groups = list(zip(*(torch.split(row, sizes) for row in rows), strict=True))
    between = torch.empty(len(sizes), len(sizes), len(rows), len(rows), dtype=torch.float64, device=rows[0].device)
    for first, left in enumerate(groups):
        for second, right in enumerate(groups[: first + 1]):
            block = torch.stack([inner_products(row, column) for row, column in zip(left, right, strict=True)], dim=1)
            if second == first:
                block.diagonal(dim1=0, dim2=2).zero_()
            # a product a row, as float32 loses digits over long sums
            between[first, second] = between[second, first] = (block @ block.mT).double().sum(0)
    return between
