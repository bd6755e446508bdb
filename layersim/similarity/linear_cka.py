"""Linear centred kernel alignment between layers. Letters: L and M layers, N samples, D and D' width."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from layersim.errors import check_choice
from layersim.similarity.features import Layers, as_pair, require_samples, require_whole, warn_undefined
from layersim.similarity.hsic import hsic, near_one

Estimator = Literal["minibatch", "debiased", "biased"]

LEAST = {"minibatch": 4, "debiased": 4, "biased": 2}  # samples: HSIC-1 divides by N − 3


def linear_cka(
    features: Layers, other: Layers | None = None, *, estimator: Estimator = "minibatch", batch_size: int = 64
) -> Tensor:
    """HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) with linear kernels (Kornblith et al. 2019).

    Args:
        features: (L, N, D) of any floating dtype: a tensor, a NumPy array, or a list of layers (N, D).
        other: (M, N, D') of the same samples, from another model or checkpoint; where None, `features` themselves.
        estimator: "debiased", the unbiased HSIC-1 of all samples (Song et al. 2012); "minibatch", HSIC-1 summed over
            groups of `batch_size` consecutive samples, then the ratio (Nguyen et al. 2021), the cheap one; "biased", as
            first published, which rises with D / N.
        batch_size: of "minibatch" alone. A last group of fewer than 4 samples has no unbiased estimate and is left out.

    Returns:
        (L, L) or (L, M) float64, 1 for a layer against itself, in [0, 1] with "biased", else in [−1, 1]. Invariant to
        each layer's own orthogonal map, scale and translation, not to any linear map; "minibatch" not to the order of
        the samples. From float32 products of n samples together, N or `batch_size`: N (n + 256) L (D + L) FLOPs, at
        most twice N n L (D + L), or N L (L + 1) D², whichever is less; and beside the features 4 L n² bytes and 4 MiB,
        above n = 256 4 L (n D + 256 · 1024), or 8 L n D. A constant layer, or one not finite, has NaN in its row and
        column, and one UserWarning names it.

    Raises:
        UserError: an unknown estimator, not (L, N, D), numbers of samples that differ, too few samples (2 for "biased",
            else 4) or `batch_size` < 4.
    """
    check_estimator(estimator, batch_size)
    features, other = as_pair(features, other)
    require_samples(features.shape[1], LEAST[estimator], f'linear CKA with estimator="{estimator}"')
    if torch.float64 in (features.dtype, getattr(other, "dtype", None)):  # whose range HSIC's fourth degree can leave
        features = near_one(features.to(torch.float64, copy=True), [])
        other = None if other is None else near_one(other.to(torch.float64, copy=True), [])
    sizes = int(batch_size) if estimator == "minibatch" else features.shape[1]
    total = torch.stack(list(hsic_of_groups(features, other, sizes, estimator))).sum(0)
    return warn_undefined(ratio(total), features, other)


def check_estimator(estimator: str, batch_size: int) -> None:
    check_choice("estimator", estimator, Estimator)
    require_whole("batch_size", batch_size, LEAST["minibatch"], ", as unbiased HSIC divides by N − 3")


def hsic_of_groups(
    features: Tensor, other: Tensor | None, sizes: int | list[int], estimator: Estimator
) -> Iterator[Tensor]:
    """HSIC (L, M) in each group of consecutive samples, `sizes` of them, that has enough; with each layer's own value
    beside its row, as the last column, or below its column, as the last row: (L + 1, M + 1)."""
    for group in zip(*(torch.split(x, sizes, dim=1) for x in (features, other) if x is not None), strict=True):
        if group[0].shape[1] < LEAST[estimator]:
            continue
        value = hsic(group, unbiased=estimator != "biased")
        yield bordered(value, len(group[0]), len(group[-1]))


def bordered(value: Tensor, first: int, last: int) -> Tensor:
    """HSIC of all layers together → (L + 1, M + 1) of the `first` L and `last` M; the corner counts another model's."""
    own = value.diagonal()
    whole = value.new_zeros(first + 1, last + 1)
    whole[:-1, :-1] = value[:first, -last:]
    whole[:-1, -1], whole[-1, :-1] = own[:first], own[-last:]
    whole[-1, -1] = len(own) - first
    return whole


def ratio(values: Tensor) -> Tensor:
    """(L + 1, M + 1) as `bordered` gives them → (L, M)."""
    return values[:-1, :-1] / roots(values)


def roots(values: Tensor) -> Tensor:
    return values[:-1, -1:].sqrt() * values[-1:, :-1].sqrt()
