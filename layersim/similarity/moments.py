"""HSIC between the linear kernels of all pairs of layers, of samples that come bit by bit and are not kept.

HSIC needs, of centred features x, ‖Σ_i x_i^l (x_i^m)ᵀ‖² and Σ_i ‖x_i^l‖² ‖x_i^m‖² (see `hsic`). Both follow from sums
about any origin near the mean, so that one pass suffices: a sample's squared length about another origin is linear in
its squared length and its features, and sums of products of lengths are so in Σ ‖z^l‖² ‖z^m‖², Σ ‖z^l‖² z^m and
Σ z^l (z^m)ᵀ. No moment of D³ numbers is needed. Letters: L layers, n samples, D width, K = L (L + 1) / 2 pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from layersim.precision import full_precision, widened
from layersim.similarity.hsic import debiased, inner_products

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
            columns = [row.mT.contiguous() for row in rows]
            for place, (one, other) in enumerate(pairs(len(rows))):
                self.second[place] += inner_products(columns[one], columns[other])
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
