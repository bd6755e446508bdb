"""Linear centred kernel alignment between layers. Letters: L and M layers, N samples, D and D' width."""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.similarity.features import require_pair, require_samples, warn_undefined
from layersim.similarity.hsic import COLUMNS, ROWS, hsic
from layersim.similarity.properties import Properties
from layersim.similarity.samples import Batch, SampleMetric, require_distinct

Estimator = Literal["minibatch", "debiased", "biased"]

LEAST = {"minibatch": 4, "debiased": 4, "biased": 2}  # samples: HSIC-1 divides by N − 3


def linear_cka(
    features: Tensor, other: Tensor | None = None, *, estimator: Estimator = "minibatch", batch_size: int = 64
) -> Tensor:
    """HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) with linear kernels (Kornblith et al. 2019).

    Args:
        features: (L, N, D) of any floating dtype.
        other: (M, N, D') of the same samples, from another model or checkpoint; where None, `features` themselves.
        estimator: "debiased", the unbiased HSIC-1 of all samples (Song et al. 2012); "minibatch", HSIC-1 summed over
            groups of `batch_size` consecutive samples, then the ratio (Nguyen et al. 2021), the cheap one; "biased", as
            first published, which rises with D / N.
        batch_size: of "minibatch" alone. A last group of fewer than 4 samples has no unbiased estimate and is left out.

    Returns:
        (L, L) or (L, M) float64, 1 for a layer against itself, in [0, 1] with "biased", else in [−1, 1]. Invariant to
        each layer's own orthogonal map, scale and translation, not to any linear map; "minibatch" not to the order of
        the samples. From float32 products: N² L (D + L) FLOPs and 4 L (N D + 2 · 128 · 2048) bytes beside the features,
        with groups of n samples 2 N n L (D + L) FLOPs and 4 L n (2 D + 5 n) bytes. A constant layer, or one not finite,
        has NaN in its row and column, and one UserWarning names it.

    Raises:
        UserError: an unknown estimator, not (L, N, D), numbers of samples that differ, too few samples (2 for "biased",
            else 4) or `batch_size` < 4.
    """
    _check(estimator, batch_size)
    require_pair(features, other)
    require_samples(features.shape[1], LEAST[estimator], f'linear CKA with estimator="{estimator}"')
    sizes = batch_size if estimator == "minibatch" else features.shape[1]
    total = torch.stack(list(_hsic_of_groups(features, other, sizes, estimator))).sum(0)
    return warn_undefined(_ratio(total), features, other)


class LinearCKA(SampleMetric):
    """`linear_cka` over batches and processes: the same value whatever the loader's batch size, the order or the split.

    "minibatch": the groups are made of positions in the data set, group = position // `batch_size`, not of the loader's
    batches. An update of whole groups is used at once; other samples wait until their group is complete, at the latest
    for `compute`, where those of all processes meet. So processes that take contiguous shares of the data keep almost
    nothing, and processes that take turns keep everything.

    "debiased", "biased": the features are kept, `max_samples` of them at most: those whose position has the smallest
    hash, so that the choice depends on the data alone.
    """

    def __init__(
        self, *, estimator: Estimator = "minibatch", batch_size: int = 64, max_samples: int | None = None
    ) -> None:
        """See `linear_cka`.

        Raises:
            UserError: an unknown estimator, `batch_size` < 4, `max_samples` below what the estimator needs, or
                `max_samples` with "minibatch".
        """
        _check(estimator, batch_size)
        if max_samples is not None and estimator == "minibatch":
            raise UserError(
                f'max_samples: estimator="minibatch" streams and keeps no samples to cap, got {max_samples}: leave it '
                'out, or choose estimator="debiased"'
            )
        if max_samples is not None and max_samples < LEAST[estimator]:
            raise UserError(f"max_samples: expected at least {LEAST[estimator]}, got {max_samples}")
        super().__init__(max_samples=max_samples, group=batch_size)
        self.estimator: Estimator = estimator
        self.batch_size = batch_size

    @property
    def options(self) -> dict[str, Any]:
        """What a run records beside the values."""
        if self.estimator == "minibatch":
            return {"estimator": self.estimator, "batch_size": self.batch_size}
        return {"estimator": self.estimator, "max_samples": self.max_samples}

    @property
    def properties(self) -> Properties:
        """What the measure promises with these options."""

        def grams(layers: int, samples: int, width: int) -> float:
            if self.estimator == "minibatch":
                return 2 * samples * self.batch_size * layers * (width + layers)
            return samples**2 * layers * (width + layers)

        def held(layers: int, samples: int, width: int) -> float:
            if self.estimator == "minibatch":
                return 4 * layers * self.batch_size * (2 * width + 5 * self.batch_size)
            return 4 * layers * (samples * width + 2 * min(samples, ROWS) * min(samples, COLUMNS))

        return Properties(
            orthogonal="own",
            scaling="own",
            linear="none",
            translation="own",
            permutation=self.estimator != "minibatch",
            range=(0 if self.estimator == "biased" else -1, 1),
            flops=grams,
            bytes=held,
        )

    def update(self, features: Tensor, index: Tensor | None = None, *, other: Tensor | None = None) -> None:
        """Takes (L, n, D) features, their samples' (n,) integer positions in the data set, on the host, and, to compare
        two models, the (M, n, D') features that the `other` has for the same samples.

        Without positions samples are numbered as they come; on several processes give them, or groups and kept samples
        depend on the split.
        """
        batch = self.admit(features, index, other)
        if self.estimator != "minibatch":
            self.keep(batch)
        elif self._holds_whole_groups(batch.index):
            self._use(batch)
        else:
            self.keep(batch)
            self._use_complete()

    def compute(self) -> Tensor:
        """(L, L) or (L, M) float64, as `linear_cka` on all samples in the order of their positions.

        Raises:
            UserError: too few samples came, or a position came twice.
        """
        measure = f'linear CKA with estimator="{self.estimator}"'
        require_samples(self.count(), LEAST[self.estimator], measure)
        kept = self.kept()
        if self.estimator != "minibatch":
            return linear_cka(kept.features, kept.other, estimator=self.estimator)
        parts = [self.total()] if len(self.sums) else []
        if len(kept.index):
            sizes = torch.unique_consecutive(kept.index // self.batch_size, return_counts=True)[1].tolist()
            parts += _hsic_of_groups(kept.features, kept.other, sizes, self.estimator)
        if not parts:
            raise UserError(
                f"{measure} needs a group of {self.batch_size} consecutive positions with at least 4 samples, got "
                "none: give each sample its position in the data set as index, or raise batch_size"
            )
        return warn_undefined(_ratio(torch.stack(parts).sum(0)))

    def _holds_whole_groups(self, index: Tensor) -> bool:
        """Whether (n,) positions are whole groups and nothing else, in order; asked of the host, so no GPU waits."""
        if not len(index) or len(index) % self.batch_size or int(index[0]) % self.batch_size:
            return False
        return torch.equal(index, torch.arange(len(index)) + index[0])

    def _use(self, batch: Batch) -> None:
        for value in _hsic_of_groups(batch.features, batch.other, self.batch_size, self.estimator):
            self.add(value)

    def _use_complete(self) -> None:
        """Uses the complete groups once they are half of what waits, so that copying stays linear."""
        index = torch.cat(self.index)
        _, group, sizes = torch.unique(index // self.batch_size, return_inverse=True, return_counts=True)
        complete = (sizes >= self.batch_size)[group]
        if 2 * int(complete.sum()) < len(index) or not complete.any():
            return
        order = index.argsort()
        order = order[complete[order]]
        require_distinct(index[order])
        features = torch.cat(self.features)[order].transpose(0, 1)
        other = torch.cat(self.others)[order].transpose(0, 1) if self.others else None
        self._use(Batch(features, other, index[order]))
        self.select(~complete)


def _check(estimator: str, batch_size: int) -> None:
    if estimator not in get_args(Estimator):
        raise UserError(f'estimator: expected one of {", ".join(get_args(Estimator))}, got "{estimator}"')
    if batch_size < LEAST["minibatch"]:
        raise UserError(f"batch_size: expected at least 4, as unbiased HSIC divides by N − 3, got {batch_size}")


def _hsic_of_groups(
    features: Tensor, other: Tensor | None, sizes: int | list[int], estimator: Estimator
) -> Iterator[Tensor]:
    """HSIC (L, M) in each group of consecutive samples, `sizes` of them, that has enough; with each layer's own value
    beside its row, as the last column, or below its column, as the last row: (L + 1, M + 1)."""
    for group in zip(*(torch.split(x, sizes, dim=1) for x in (features, other) if x is not None), strict=True):
        if group[0].shape[1] < LEAST[estimator]:
            continue
        value = hsic([layer for layers in group for layer in layers], unbiased=estimator != "biased")
        own, first = value.diagonal(), len(features)
        bordered = value.new_zeros(first + 1, len(group[-1]) + 1)
        bordered[:-1, :-1] = value[:first, -len(group[-1]) :]
        bordered[:-1, -1], bordered[-1, :-1] = own[:first], own[-len(group[-1]) :]
        yield bordered


def _ratio(bordered: Tensor) -> Tensor:
    roots = bordered[:-1, -1:].sqrt() * bordered[-1:, :-1].sqrt()
    return bordered[:-1, :-1] / roots
