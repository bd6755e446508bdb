"""Linear CKA of all samples, however many, none of which is kept.

HSIC between linear kernels needs, of centred features x, ‖Σ_i x_i^l (x_i^m)ᵀ‖² and Σ_i ‖x_i^l‖² ‖x_i^m‖² (see `hsic`).
Both follow from sums about any origin near the mean, so that one pass suffices: a sample's squared length about another
origin is linear in its squared length and its features, and sums of products of lengths are so in Σ ‖z^l‖² ‖z^m‖²,
Σ ‖z^l‖² z^m and Σ z^l (z^m)ᵀ. No moment of D³ numbers is needed. Letters: L layers, n and N samples, D width,
K = L (L + 1) / 2 pairs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layersim.errors import UserError, check_choice
from layersim.precision import full_precision, widened
from layersim.similarity.features import Layers, require_samples, warn_undefined
from layersim.similarity.hsic import debiased, inner_products, near_one
from layersim.similarity.intervals import Interval
from layersim.similarity.kept_samples import Samples, joined
from layersim.similarity.linear_cka import LEAST, linear_cka
from layersim.similarity.measure import Measure
from layersim.similarity.positions import require_distinct
from layersim.similarity.properties import Properties
from layersim.similarity.rbf_cka import RBFEstimator

STRETCH = 1024  # samples that wait to be multiplied together: adding products up costs as much as 400 samples' products


def bytes_of(layers: int, width: int) -> int:
    """What the sums take, and the samples that wait, three times over while they are multiplied."""
    return 4 * layers * (layers + 1) * width**2 + 12 * STRETCH * layers * width


@dataclass(frozen=True)
class Moments:
    """Sums over n samples' differences z to an origin of each layer, float64; all change in place."""

    origin: Tensor
    """(L, D)"""
    count: Tensor
    """(1,) n"""
    first: Tensor
    """(L, D) Σ z"""
    second: Tensor
    """(K, D, D) Σ z^l (z^m)ᵀ of the pairs m ≤ l, as `pairs` has them."""
    squares: Tensor
    """(L,) Σ ‖z‖²"""
    mixed: Tensor
    """(L, L, D) Σ ‖z^l‖² z^m"""
    fourth: Tensor
    """(L, L) Σ ‖z^l‖² ‖z^m‖²"""

    @classmethod
    def about(cls, origin: Tensor) -> "Moments":
        """Of no samples, about an (L, D) origin."""
        origin, (layers, width) = origin.double(), origin.shape
        shapes = [(1,), (layers, width), (len(pairs(layers)), width, width), (layers,), (layers, layers, width)]
        return cls(origin, *(origin.new_zeros(shape) for shape in (*shapes, (layers, layers))))

    @torch.no_grad()
    def add(self, layers: Tensor) -> None:
        """Adds (L, n, D) samples, by float32 products unless they are float64."""
        with full_precision(layers.device):
            finest = widened(layers).dtype
            rows = [(layer.double() - at).to(finest) for layer, at in zip(layers, self.origin, strict=True)]
            lengths = torch.stack([row.double().square().sum(1) for row in rows])
            for layer, row in enumerate(rows):
                self.first[layer] += row.double().sum(0)
                self.mixed[:, layer] += lengths @ row.double()
            exponents: list[Tensor] = []
            columns = [near_one(row[None], exponents)[0].mT.contiguous() for row in rows]
            scales = torch.exp2(torch.cat(exponents).double())
            for place, (one, other) in enumerate(pairs(len(rows))):
                products = inner_products(columns[one], columns[other])
                self.second[place] += products.double() * (scales[one] * scales[other])
            self.count.add_(layers.shape[1])
            self.squares.add_(lengths.sum(1))
            self.fourth.add_(lengths @ lengths.mT)

    def sums(self) -> list[Tensor]:
        """All but the origin, in the order of the fields: those of several processes can be added where it is one."""
        return [self.count, self.first, self.second, self.squares, self.mixed, self.fourth]

    def mean(self) -> Tensor:
        """(L, D) of the samples."""
        return self.origin + self.first / self.count

    @torch.no_grad()
    def move(self, origin: Tensor) -> None:
        """Makes them sums about another origin."""
        step = origin - self.origin
        turned = torch.empty_like(self.mixed)  # [l, m]: Σ <z^l, step^l> z^m
        for place, (one, other) in enumerate(pairs(len(step))):
            turned[one, other] = self.second[place].mT @ step[one]
            turned[other, one] = self.second[place] @ step[other]
            self.second[place] -= torch.outer(self.first[one], step[other]) + torch.outer(step[one], self.first[other])
            self.second[place] += self.count * torch.outer(step[one], step[other])
        length, along = step.square().sum(1), (self.first * step).sum(1)
        across = (self.mixed * step).sum(2)
        self.fourth.add_(4 * (turned * step).sum(2) - 2 * (across + across.mT) + self.count * length.outer(length))
        lengths = length.outer(self.squares - 2 * along)
        self.fourth.add_(lengths + lengths.mT)
        self.squares.add_(self.count * length - 2 * along)
        self.mixed.add_(length[:, None, None] * self.first - 2 * turned - self.squares[:, None, None] * step)
        self.first.sub_(self.count * step)
        self.origin.copy_(origin)

    def hsic(self, *, unbiased: bool) -> Tensor:
        """(L, L) float64, as `hsic` of all samples at once. Moves the origin to the mean."""
        self.move(self.mean())
        every, samples = self.fourth.clone(), int(self.count)
        for value, (one, other) in zip(self.second.square().sum((1, 2)), pairs(len(every)), strict=True):
            every[one, other] = every[other, one] = value
        if unbiased:
            return debiased(every - self.fourth, self.fourth, self.squares, samples)
        return every / (samples - 1) ** 2


def pairs(layers: int) -> list[tuple[int, int]]:
    """All (l, m ≤ l)."""
    return [(one, other) for one in range(layers) for other in range(one + 1)]


class StreamedCKA(Measure):
    """`linear_cka` of all samples by sums of covariances of all pairs of layers: for many samples and small widths.

    The value is the function's on all samples at once, up to rounding (1e-6 with float32 features), whatever the batch
    size, the order or the split. Sums take 4 L (L + 1) D² bytes whatever N is, and N L (L + 1) D² FLOPs; a position
    takes 8 bytes. It has no interval, and no other model to compare with: for these choose `LinearCKA`.
    """

    label = "linear CKA"
    value_range = (-1, 1)
    function = staticmethod(linear_cka)
    properties = Properties(orthogonal="own", translation="own")
    keeps_by = 'choose LinearCKA(estimator="debiased", max_samples=4096)'

    used: list[Tensor]
    """(n,) int64 tensors on the host: positions of samples that are in the sums."""
    origin: list[Tensor]
    """(1, L, D) float64, of the sums."""
    moments: list[Tensor]
    """What `Moments.sums` gives, once there are any."""

    def __init__(self, *, estimator: RBFEstimator = "debiased", max_bytes: int | None = 2**28) -> None:
        """`estimator`: as of `linear_cka`. `max_bytes`: more the sums and what waits to be added must not take; None:
        there is no bound. (2²⁸: 12 layers of width 384, or 8 of 512.)

        Raises:
            UserError: an unknown estimator.
        """
        check_choice("estimator", estimator, RBFEstimator)
        self.arguments = {"estimator": estimator}
        super().__init__(max_samples=None)
        self.estimator = estimator
        self.max_bytes = max_bytes
        self.value_range = (0 if estimator == "biased" else -1, 1)
        for name, reduction in {"used": "cat", "origin": "cat", "moments": "sum"}.items():
            self.add_state(name, [], dist_reduce_fx=reduction)

    @property
    def options(self) -> dict[str, Any]:
        return {**self.arguments, "max_samples": None}

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

    @torch.inference_mode(False)  # whose tensors may not be changed outside of it
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
