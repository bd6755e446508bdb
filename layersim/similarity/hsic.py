"""HSIC between the linear kernels of all pairs of layers. Letters: L layers, N samples, D width, of each layer its own.

Both ways to it take each pair once, have memory bounded whatever N is, and multiply float32 with float32. Which one is
shorter depends on N and D alone, so it is chosen by the products that it needs.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from layersim.precision import full_precision
from layersim.similarity.features import centred

WHOLE = 256  # samples whose Gram matrices are computed whole: twice the products, for fewer and larger calls
ROWS = 128  # of a block of Gram matrices: few, so that little above the diagonal is computed twice
COLUMNS = 2048  # of a block: many, so that the product is worth its overhead
FEW = 32  # samples: so few leave rounding nothing to average out over, and float64 costs nothing
STRETCH = 2048  # samples whose products are summed in float32, before float64 takes them


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
        # in one precision, the finest that came
        finest = torch.float64 if samples <= FEW or any(x.dtype == torch.float64 for x in layers) else torch.float32
        exponents: list[Tensor] = []
        # layer by layer, as one layer and what becomes of it fit the processor's cache
        prepared = (near_one(centred(layer.to(finest).contiguous(), dim=0), exponents) for layer in layers)
        widths = [layer.shape[1] for layer in layers]
        if gram_products(samples, widths) > covariance_products(samples, widths):
            rows = list(prepared)
            squares = torch.stack([torch.linalg.vector_norm(row, dim=1) for row in rows]).square().double()
            diagonal = squares @ squares.mT
            apart = by_covariances(rows) - diagonal
        else:
            apart, squares = by_whole_grams(prepared) if samples <= WHOLE else by_grams(list(prepared))
            diagonal = squares @ squares.mT
        if unbiased:
            value = debiased(apart, diagonal, squares.sum(1), samples)
        else:
            value = (apart + diagonal) / (samples - 1) ** 2
    scales = torch.exp2(2 * torch.stack(exponents).double())
    return value * scales[:, None] * scales


def debiased(apart: Tensor, diagonal: Tensor, totals: Tensor, samples: int) -> Tensor:
    """HSIC-1 (L, L) of N centred features: rows of a centred Gram matrix sum to zero, so that all that U-centring needs
    of them is their diagonal. `apart` is (L, L) Σ_{i≠j} G^l_ij G^m_ij, `diagonal` Σ_i G^l_ii G^m_ii, `totals` (L,)
    Σ_i G_ii."""
    corrected = apart + (totals.outer(totals) / (samples - 1) - 2 * diagonal) / (samples - 2)
    return corrected / (samples * (samples - 3))


def centred_kernel(kernel: Tensor, *, unbiased: bool) -> Tensor:
    """An (N, N) kernel centred in place, so that Σ_ij of two layers' products is their HSIC, times N (N − 3) where
    `unbiased`, else (N − 1)²."""
    if unbiased:
        means = kernel.fill_diagonal_(0).sum(1) / (len(kernel) - 2)
        kernel += means.sum() / (len(kernel) - 1) - means[:, None] - means
        kernel.fill_diagonal_(0)
    else:
        means = kernel.mean(1)
        kernel += means.mean() - means[:, None] - means
    return kernel


def near_one(row: Tensor, exponents: list[Tensor]) -> Tensor:
    """Brings a layer (N, D) near one, in place, by a power of two, which rounds nothing, since HSIC is of fourth
    degree: of features of 1e±10 float32 could not hold the products. Appends the exponent taken off, ()."""
    # asked of the host alone, where nobody waits: most layers are near enough as they are
    if row.device.type == "cpu" and 2**-16 < torch.linalg.vector_norm(row).item() < 2**20:
        exponents.append(torch.zeros(()))
        return row
    # of 2¹²⁶ the inverse is a normal number of float32 as well, of 2¹⁰²² of float64; what is left beyond does no harm
    most = 126 if row.dtype == torch.float32 else 1022
    exponents.append(torch.frexp(row.abs().amax()).exponent.clamp(-most, most))
    return row.mul_(torch.exp2(-exponents[-1].to(row.dtype)))


def gram_products(samples: int, widths: Sequence[int]) -> int:
    """Multiplications by way of Gram matrices, half of which are computed above `WHOLE` samples: N² (Σ D + L²) / 2."""
    return samples**2 * (sum(widths) + len(widths) ** 2) // 2


def covariance_products(samples: int, widths: Sequence[int]) -> int:
    """Multiplications by way of the covariances of all pairs of layers: N Σ_{l≤m} D_l D_m."""
    return samples * (sum(widths) ** 2 + sum(width**2 for width in widths)) // 2


def by_whole_grams(rows: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """`by_grams` of few samples: twice the products, but in a few large calls."""
    grams = torch.stack([inner_products(row, row) for row in rows])
    diagonals = grams.diagonal(dim1=1, dim2=2)
    squares = diagonals.to(torch.float64, copy=True)
    diagonals.zero_()
    return _sums_of_rows(grams), squares


def by_grams(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Σ_{i≠j} G^l_ij G^m_ij with G_ij = <row_i, row_j> of L tensors (N, D), (L, L), and G_ii, (L, N): float64."""
    layers, samples = len(rows), len(rows[0])
    total = torch.zeros(layers, layers, dtype=torch.float64, device=rows[0].device)
    squares = []
    for top in range(0, samples, ROWS):
        bottom = min(top + ROWS, samples)
        for left in range(top, samples, COLUMNS):
            right = min(left + COLUMNS, samples)
            block = torch.stack([inner_products(row[top:bottom], row[left:right]) for row in rows])
            if left == top:
                squares.append(block.diagonal(dim1=1, dim2=2).to(torch.float64, copy=True))
                block[:, :, : bottom - top].triu_(diagonal=1)  # each pair once, none with itself
            total += _sums_of_rows(block)
    return 2 * total, torch.cat(squares, dim=1)


def _sums_of_rows(block: Tensor) -> Tensor:
    """Σ_ij A^l_ij A^m_ij of (L, R, C), (L, L) float64: each row's product is added in float64, as float32 loses digits
    over long sums."""
    pairs = block.transpose(0, 1)
    return (pairs @ pairs.mT).double().sum(0)


def by_covariances(rows: Sequence[Tensor]) -> Tensor:
    """Σ_ij G^l_ij G^m_ij = ‖X_lᵀ X_m‖² of the (N, D) rows X, (L, L) float64."""
    # widths first and in one piece, as the product wants them
    stretches = [[stretch.mT.contiguous() for stretch in torch.split(row, STRETCH)] for row in rows]
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows[0].device)
    for first, left in enumerate(stretches):
        for second, right in enumerate(stretches[: first + 1]):
            covariance = total.new_zeros(len(left[0]), len(right[0]))
            for one, other in zip(left, right, strict=True):
                covariance += inner_products(one, other)
            total[first, second] = total[second, first] = covariance.square().sum()
    return total


def inner_products(rows: Tensor, columns: Tensor) -> Tensor:
    """(R, C) inner products of (R, K) and (C, K)."""
    if rows.device.type != "cpu" or rows.dtype != torch.float32 or not torch.backends.mkldnn.enabled:
        return rows @ columns.mT
    # oneDNN multiplies float32 with the widest instructions on every maker's processors; torch's default library
    # reached half its speed on AMD, and these products are nearly all of the work
    return torch.ops.mkldnn._linear_pointwise(rows, columns, None, "none", [], "")


@torch.no_grad()
def hsic_without_groups(layers: Sequence[Tensor], sizes: list[int], *, unbiased: bool) -> Tensor:
    """HSIC (J, L, L) float64 of L layers (N, D) whose samples stand group by group, without each of J groups in turn.

    At the cost of one HSIC: without a group the sums over pairs of samples are the whole's less the group's, so that
    each pair is multiplied once; and as the kernel is linear, row sums of a Gram matrix are products with sums of
    samples.

    As `hsic` of what is left (Song et al. 2012, eq. 5, or Gretton et al. 2005), but in units of each layer's own and of
    each number of samples, which a ratio as CKA does not see. From float32 products unless a layer is float64.
    """
    count, samples = len(sizes), len(layers[0])
    finest = torch.promote_types(torch.float32, max((x.dtype for x in layers), key=lambda dtype: dtype.itemsize))
    with full_precision(layers[0].device):
        rows = [near_one(centred(layer.to(finest).contiguous(), dim=0), []) for layer in layers]
        between = _pairs_of_groups(rows, sizes)
        numbers = torch.arange(count).repeat_interleave(torch.tensor(sizes))
        of_group = torch.nn.functional.one_hot(numbers, count).to(between)  # (N, J)
        diagonal = torch.stack([row.double().square().sum(1) for row in rows])
        # (L, N, J) sums of each sample's inner products with all samples that are not in a group
        row_sums = torch.stack([row @ (row.sum(0) - of_group.mT @ row).mT for row in map(Tensor.double, rows)])
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
