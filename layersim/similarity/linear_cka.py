"""Linear centred kernel alignment between layers. Letters: L layers, N samples, D width."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.similarity.features import require_features, require_samples, warn_undefined
from layersim.similarity.hsic import hsic
from layersim.similarity.samples import SampleMetric, require_distinct

Estimator = Literal["minibatch", "debiased", "biased"]

LEAST = {"minibatch": 4, "debiased": 4, "biased": 2}  # samples: HSIC-1 divides by N − 3


def linear_cka(features: Tensor, *, estimator: Estimator = "minibatch", batch_size: int = 64) -> Tensor:
    """HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) with linear kernels (Kornblith et al. 2019).

    Args:
        features: (L, N, D) of any floating dtype.
        estimator: "debiased", the unbiased HSIC-1 of all samples (Song et al. 2012); "minibatch", HSIC-1 summed over
            groups of `batch_size` consecutive samples, then the ratio (Nguyen et al. 2021), the cheap one; "biased", as
            first published, which rises with D / N.
        batch_size: of "minibatch" alone. A last group of fewer than 4 samples has no unbiased estimate and is left out.

    Returns:
        (L, L) float64, 1 on the diagonal, unbiased estimates may be slightly negative. Invariant to each layer's own
        orthogonal map, scale and translation, not to any linear map. A constant layer, or one not finite, has NaN in
        its row and column, and one UserWarning names it.

    Raises:
        UserError: an unknown estimator, not (L, N, D), too few samples (2 for "biased", else 4) or `batch_size` < 4.
    """
    _check(estimator, batch_size)
    require_features(features)
    require_samples(features.shape[1], LEAST[estimator], f'linear CKA with estimator="{estimator}"')
    if estimator == "minibatch":
        groups = [group for group in torch.split(features, batch_size, dim=1) if group.shape[1] >= LEAST[estimator]]
        return _ratio(torch.stack([hsic(group, unbiased=True) for group in groups]).sum(0))
    return _ratio(hsic(features, unbiased=estimator == "debiased"))


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

    def update(self, features: Tensor, index: Tensor | None = None) -> None:
        """Takes (L, n, D) features and their samples' (n,) integer positions in the data set, on the host.

        Without positions samples are numbered as they come; on several processes give them, or groups and kept samples
        depend on the split.
        """
        features, index = self.admit(features, index)
        if self.estimator != "minibatch":
            self.keep(features, index)
        elif self._holds_whole_groups(index):
            self._use(features)
        else:
            self.keep(features, index)
            self._use_complete()

    def compute(self) -> Tensor:
        """(L, L) float64, as `linear_cka` on all samples in the order of their positions.

        Raises:
            UserError: too few samples came, or a position came twice.
        """
        measure = f'linear CKA with estimator="{self.estimator}"'
        require_samples(self.count(), LEAST[self.estimator], measure)
        features, index = self.kept()
        if self.estimator != "minibatch":
            return linear_cka(features, estimator=self.estimator)
        parts = [self.total()] if len(self.sums) else []
        if len(index):
            sizes = torch.unique_consecutive(index // self.batch_size, return_counts=True)[1].tolist()
            groups = [group for group in torch.split(features, sizes, dim=1) if group.shape[1] >= LEAST["minibatch"]]
            parts += [hsic(group, unbiased=True) for group in groups]
        if not parts:
            raise UserError(
                f"{measure} needs a group of {self.batch_size} consecutive positions with at least 4 samples, got "
                "none: give each sample its position in the data set as index, or raise batch_size"
            )
        return _ratio(torch.stack(parts).sum(0))

    def _holds_whole_groups(self, index: Tensor) -> bool:
        """Whether (n,) positions are whole groups and nothing else, in order; asked of the host, so no GPU waits."""
        if not len(index) or len(index) % self.batch_size or int(index[0]) % self.batch_size:
            return False
        return torch.equal(index, torch.arange(len(index)) + index[0])

    def _use(self, features: Tensor) -> None:
        for group in torch.split(features, self.batch_size, dim=1):
            self.add(hsic(group, unbiased=True))

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
        features = torch.cat(self.features)
        self._use(features[order].transpose(0, 1))
        self.features[:], self.index[:] = [features[~complete]], [index[~complete]]


def _check(estimator: str, batch_size: int) -> None:
    if estimator not in get_args(Estimator):
        raise UserError(f'estimator: expected one of {", ".join(get_args(Estimator))}, got "{estimator}"')
    if batch_size < LEAST["minibatch"]:
        raise UserError(f"batch_size: expected at least 4, as unbiased HSIC divides by N − 3, got {batch_size}")


def _ratio(values: Tensor) -> Tensor:
    roots = values.diagonal().sqrt()
    return warn_undefined(values / (roots[:, None] * roots))
