"""HSIC between the linear kernels of all pairs of layers. Letters: L layers, N samples, D width, of each layer its own.

Both ways to it take each pair once, have memory bounded whatever N is, and multiply float32 with float32. Which one is
shorter depends on N and D alone, so it is chosen by the products that it needs.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from time import perf_counter

import torch
from torch import Tensor

from layersim.precision import full_precision
from layersim.similarity.features import centred

HELD = 256  # samples, of which a layer and its Gram matrix fit the processor's cache together
CACHE = 2**22  # bytes of features that are centred and multiplied at a time
COLUMNS = 1024  # of a block of Gram matrices
RUN = 1024  # products that are summed in float32, before float64 takes them
FEW = 32  # samples: so few leave rounding nothing to average out over, and float64 costs nothing
STRETCH = 2048  # samples whose products are summed in float32, before float64 takes them


@torch.no_grad()
def hsic(sets: Sequence[Tensor], *, unbiased: bool) -> Tensor:
    """HSIC of every pair of the L layers of all sets, (L, L) float64, from features (L', N, D) of the same samples.

    `unbiased`: HSIC-1, Σ_{i≠j} Ã_ij B̃_ij / (N (N − 3)) with U-centred Gram matrices (Song et al. 2012, eq. 5; Székely
    and Rizzo 2014), N ≥ 4. Otherwise tr(K H L H) / (N − 1)² (Gretton et al. 2005), N ≥ 2. A layer's own value has the
    unit of its features to the fourth power; a constant layer's is exactly zero.
    """
    samples, device = sets[0].shape[1], sets[0].device
    assert samples >= (4 if unbiased else 2)
    widths = [layers.shape[2] for layers in sets for _ in layers]
    by_products = gram_products(samples, widths) <= covariance_products(samples, widths)
    # in one precision, the finest that came
    finest = torch.float64 if samples <= FEW or any(x.dtype == torch.float64 for x in sets) else torch.float32
    exponents: list[Tensor] = []

    def prepared() -> Iterator[Tensor]:
        """(L'', N, D) of as many layers as the cache holds; of few samples, one after the other in one place."""
        for layers in sets:
            place = None
            for some in torch.split(layers, max(1, CACHE // max(1, finest.itemsize * layers[0].numel()))):
                if place is None or samples > HELD or not by_products:
                    place = some.new_empty(some.shape, dtype=finest)
                rows = centred(some.to(finest), 1, place[: len(some)])
                yield near_one(rows, exponents) if scaled else rows

    # most features are near enough to one as they are, which the host alone is asked afterwards, where nobody waits
    for scaled in (False, True) if device.type == "cpu" else (True,):
        with full_precision(device):
            apart, squares = by_grams(prepared(), len(widths), samples) if by_products else by_covariances(prepared())
        totals = squares.sum(1)
        if not scaled and bool(((totals > 2**-32) & (totals < 2**40)).all()):
            break
    diagonal = squares @ squares.mT
    value = debiased(apart, diagonal, totals, samples) if unbiased else (apart + diagonal) / (samples - 1) ** 2
    if exponents:
        scales = torch.exp2(2 * torch.cat(exponents).double())
        value *= scales[:, None] * scales
    return value


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


def near_one(rows: Tensor, exponents: list[Tensor]) -> Tensor:
    """Brings layers (L, N, D) near one, in place, by powers of two, which round nothing, since HSIC is of fourth
    degree: of features of 1e±10 float32 could not hold the products. Appends the exponents taken off, (L,)."""
    # of 2¹²⁶ the inverse is a normal number of float32 as well, of 2¹⁰²² of float64; what is left beyond does no harm
    most = 126 if rows.dtype == torch.float32 else 1022
    exponents.append(torch.frexp(rows.abs().amax((1, 2))).exponent.clamp(-most, most))
    return rows.mul_(torch.exp2(-exponents[-1].to(rows.dtype))[:, None, None])


def gram_products(samples: int, widths: Sequence[int]) -> int:
    """Multiplications by way of the halves of Gram matrices: N² (Σ D + L²) / 2."""
    return samples**2 * (sum(widths) + len(widths) ** 2) // 2


def covariance_products(samples: int, widths: Sequence[int]) -> int:
    """Multiplications by way of the covariances of all pairs of layers: N Σ_{l≤m} D_l D_m."""
    return samples * (sum(widths) ** 2 + sum(width**2 for width in widths)) // 2


def by_grams(rows: Iterable[Tensor], layers: int, samples: int) -> tuple[Tensor, Tensor]:
    """Σ_{i≠j} G^l_ij G^m_ij, (L, L), with G_ij = <row_i, row_j>, and G_ii, (L, N), of L layers in tensors (L', N, D):
    float64."""
    # few rows, so that little is computed twice, of all that the cache holds
    height = min(samples, 128 if samples <= HELD else 256)
    blocks = [(top, left) for top in range(0, samples, height) for left in range(top, samples, COLUMNS)]
    # few samples: all blocks of a layer while the cache holds it; else all layers of a block, to hold no more
    rows, together = (rows, [blocks]) if samples <= HELD else (list(rows), [[block] for block in blocks])
    apart: list[Tensor] = []
    squares: list[Tensor] = []
    rooms: list[Tensor] = []
    for some in together:
        first = 0
        for part in rows:
            rooms = rooms or [part.new_empty(layers * height * min(COLUMNS, samples)) for _ in some]
            edges = [(min(height, samples - top), min(COLUMNS, samples - left)) for top, left in some]
            grams = [room[: layers * h * w].view(layers, h, w) for room, (h, w) in zip(rooms, edges, strict=True)]
            last = first + len(part)
            for gram, (top, left) in zip(grams, some, strict=True):
                inner_products(part[:, top : top + height], part[:, left : left + COLUMNS], out=gram[first:last])
            first = last
        for gram, (top, left) in zip(grams, some, strict=True):
            if top == left:
                diagonals = gram.diagonal(dim1=1, dim2=2)
                squares.append(diagonals.to(torch.float64, copy=True))
                diagonals.zero_()
                apart.append(-_sums_of_products(gram[:, :, : gram.shape[1]]))  # which has both of i, j and j, i
            apart.append(2 * _sums_of_products(gram))
    return torch.stack(apart).sum(0), torch.cat(squares, dim=1)


def _sums_of_products(block: Tensor) -> Tensor:
    """Σ_ij A^l_ij A^m_ij of (L, R, C), (L, L) float64: `RUN` products at a time are added in float64, as float32 loses
    digits over long sums."""
    entries = block.flatten(1)
    runs = entries.shape[1] // RUN
    whole, rest = entries[:, : runs * RUN].view(len(block), runs, RUN).transpose(0, 1), entries[:, runs * RUN :]
    return (whole @ whole.mT).double().sum(0) + (rest @ rest.mT).double()


def by_covariances(rows: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """What `by_grams` gives, from Σ_ij G^l_ij G^m_ij = ‖X_lᵀ X_m‖²."""
    layers = [layer for part in rows for layer in part]
    squares = torch.stack([torch.linalg.vector_norm(layer, dim=1) for layer in layers]).square().double()
    # widths first and in one piece, as the product wants them
    stretches = [[stretch.mT.contiguous() for stretch in torch.split(layer, STRETCH)] for layer in layers]
    total = squares.new_zeros(len(layers), len(layers))
    for first, left in enumerate(stretches):
        for second, right in enumerate(stretches[: first + 1]):
            covariance = total.new_zeros(len(left[0]), len(right[0]))
            for one, other in zip(left, right, strict=True):
                covariance += inner_products(one, other)
            total[first, second] = total[second, first] = covariance.square().sum()
    return total - squares @ squares.mT, squares


def inner_products(rows: Tensor, columns: Tensor, out: Tensor | None = None) -> Tensor:
    """(…, R, C) inner products of (…, R, K) and (…, C, K), at most three axes each."""
    plain = rows.device.type != "cpu" or rows.dtype != torch.float32 or not torch.backends.mkldnn.enabled
    if plain or not onednn_is_faster():
        return torch.matmul(rows, columns.mT, out=out)
    if rows.ndim == 2:
        return _by_onednn(rows, columns)
    return torch.stack([_by_onednn(*pair) for pair in zip(rows, columns, strict=True)], out=out)


def _by_onednn(rows: Tensor, columns: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, columns, None, "none", [], "")


@cache
def onednn_is_faster() -> bool:
    """Whether this processor multiplies float32 faster by oneDNN than by torch's own library, which gave an AMD EPYC
    half of its speed. Measured at the first use, in 3 ms; a narrow lead, that noise could turn, does not count."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # a build of torch without oneDNN
        return False
    left, right = (torch.ones(rows, 384, dtype=torch.float32, device="cpu") for rows in (128, 256))
    seconds = {}
    for way in (torch.mm, _by_onednn):
        columns = right.mT if way is torch.mm else right
        took = []
        for _ in range(6):
            started = perf_counter()
            way(left, columns)
            took.append(perf_counter() - started)
        seconds[way] = min(took)
    return 1.3 * seconds[_by_onednn] < seconds[torch.mm]


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
        rows = [near_one(centred(layer.to(finest)[None], dim=1), [])[0] for layer in layers]
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
