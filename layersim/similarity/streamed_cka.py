"""Linear CKA of all samples, however many, none of which is kept. Letters: L layers, n and N samples, D width."""

from typing import Any, Literal

import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.precision import widened
from layersim.similarity.features import Layers, require_samples, warn_undefined
from layersim.similarity.intervals import Interval
from layersim.similarity.kept_samples import Samples, joined
from layersim.similarity.linear_cka import LEAST, linear_cka
from layersim.similarity.measure import Measure
from layersim.similarity.moments import STRETCH, Moments, bytes_of
from layersim.similarity.positions import require_distinct
from layersim.similarity.properties import Properties


class StreamedCKA(Measure):
    """`linear_cka` of all samples by sums of covariances of all pairs of layers: for many samples and small widths.

    The value is the function's on all samples at once, up to rounding (1e-6 with float32 features), whatever the batch
    size, the order or the split. Sums take 4 L (L + 1) D² bytes whatever N is, and N L (L + 1) D² FLOPs; a position
    takes 8 bytes. It has no interval, and no other model to compare with: for these choose `LinearCKA`.
    """

    label = "linear CKA"
    value_range = (-1, 1)
    function = staticmethod(linear_cka)
    keeps_by = 'choose LinearCKA(estimator="debiased", max_samples=4096)'

    used: list[Tensor]
    """(n,) int64 tensors on the host: positions of samples that are in the sums."""
    origin: list[Tensor]
    """(1, L, D) float64, of the sums."""
    moments: list[Tensor]
    """What `Moments.sums` gives, once there are any."""

    def __init__(self, *, estimator: Literal["debiased", "biased"] = "debiased", max_bytes: int | None = 2**28) -> None:
        """`estimator`: as of `linear_cka`. `max_bytes`: more the sums and what waits to be added must not take; None:
        there is no bound. (2²⁸: 12 layers of width 384, or 8 of 512.)

        Raises:
            UserError: an unknown estimator.
        """
        if estimator not in ("debiased", "biased"):
            raise UserError(f'estimator: expected "debiased" or "biased", got "{estimator}"')
        super().__init__(max_samples=None, estimator=estimator)
        self.estimator = estimator
        self.max_bytes = max_bytes
        self.value_range = (0 if estimator == "biased" else -1, 1)
        for name, reduction in {"used": "cat", "origin": "cat", "moments": "sum"}.items():
            self.add_state(name, [], dist_reduce_fx=reduction)

    @property
    def options(self) -> dict[str, Any]:
        return {**self.arguments, "max_samples": None}

    @property
    def properties(self) -> Properties:
        return Properties(orthogonal="own", translation="own")

    def require_room(self, layers: int, width: int) -> None:
        """Raises UserError where the sums of so many layers would take more than `max_bytes`."""
        needed = bytes_of(layers, width)
        if self.max_bytes is not None and needed > self.max_bytes:
            raise UserError(
                f"max_bytes: expected at least {needed} for {layers} layers of width {width}, got {self.max_bytes}: "
                'raise it, or choose LinearCKA(estimator="debiased", max_samples=4096)'
            )

    def update(self, features: Layers, index: Tensor | None = None, *, other: Layers | None = None) -> None:
        if other is not None:
            raise UserError("other: StreamedCKA compares the layers of one model: choose LinearCKA for two")
        batch = self.admitted(features, index, None)
        self.require_room(len(batch.features), batch.features.shape[2])
        for start in range(0, len(batch.index), STRETCH):
            part = slice(start, start + STRETCH)
            self.keep(Samples(batch.features[:, part], None, batch.index[part]))
            if sum(map(len, self.index)) >= STRETCH:
                self._sum_up()

    def _sum_up(self) -> None:
        """Adds the samples that wait."""
        if not self.index:
            return
        batch = torch.cat(self.features).transpose(0, 1)
        if not self.origin:
            moments = Moments.about(_mean(widened(batch).double(), 1 / batch.shape[1]))
            self.origin[:], self.moments[:] = [moments.origin[None]], moments.sums()
        self._moments().add(batch)
        self.used.append(joined(self.index))
        self.features.clear()
        self.index.clear()

    def _moments(self) -> Moments:
        return Moments(self.origin[0][0], *self.moments)

    def offer(self) -> tuple[int, Tensor | None]:
        """How many samples are in the sums, and their mean."""
        self._sum_up()
        return (int(self.moments[0]), self._moments().mean().cpu()) if self.origin else (0, None)

    def agree(self, offers: list[Any]) -> None:
        """Sums of several processes add where they are about one origin: the mean of all samples."""
        if self.origin:
            every = sum(count for count, _ in offers)
            means = torch.stack([mean for count, mean in offers if count], dim=1)
            shares = torch.tensor([count / every for count, _ in offers if count], dtype=means.dtype)
            self._moments().move(_mean(means, shares[:, None]).to(self.origin[0].device))

    def compute(self) -> Tensor:
        require_samples(self.count(), LEAST[self.estimator], f'linear CKA with estimator="{self.estimator}"')
        self._sum_up()
        require_distinct(joined(self.used).sort().values)
        hsic = self._moments().hsic(unbiased=self.estimator == "debiased")
        roots = hsic.diagonal().sqrt()
        return warn_undefined(hsic / roots[:, None] / roots)

    def interval_of_state(self, confidence: float) -> Interval:
        raise UserError('interval: sums over all samples give none: choose LinearCKA(estimator="debiased") for it')


def _mean(values: Tensor, shares: Tensor | float) -> Tensor:
    """(L, D) of (L, n, D), weighted; that of equal ones is exactly theirs, so that a constant layer stays one."""
    first = values[:, :1]
    return (first + ((values - first) * shares).sum(1, keepdim=True)).squeeze(1)
