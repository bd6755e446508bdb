"""Which similarity is more than chance: a measure's values with the samples of one side permuted.
Letters: L and M layers, N samples, P permutations."""

from dataclasses import dataclass
from math import factorial
from typing import Any

import torch
from torch import Tensor

from layersim.similarity.features import TooFewSamples, require_whole
from layersim.similarity.positions import splitmix64

LEVEL = 0.05
"""Up to this p a cell is beyond chance."""
FEWEST = 19
"""Permutations: with fewer no p reaches `LEVEL`."""
_ROUNDING = 1e-9  # of a cell's largest value: sums of the same addends in another order count as equal


@dataclass(frozen=True)
class Null:
    """A measure's (L, M) float64 values, and what they are where samples are paired by chance. NaN where a layer could
    not be measured, and, but for the value, where a layer meets itself."""

    value: Tensor
    """(L, M) as `compute` has it, up to rounding."""
    p: Tensor
    """(L, M) (1 + permutations that are at least as alike) / (1 + P): of unrelated layers at most α in a share α of all
    data sets, exactly."""
    p_family: Tensor
    """(L, M) the same, of permutations in which any pair of layers of the map is at least as alike as this one is: maps
    of unrelated layers have one cell or more at most α in a share α of all data sets at most."""
    calibrated: Tensor
    """(L, M) 0 where p is above 0.05, else (value − threshold) / (value of a layer against itself − threshold), up to 1
    (arXiv 2602.14486, algorithm 1); the numerator alone of a measure that does not say what the latter is."""
    mean: Tensor
    """(L, M) of the permutations."""
    threshold: Tensor
    """(L, M) beyond it p is at most 0.05: the ⌈0.95 (1 + P)⌉-th of value and permutations, from the least alike on."""
    permutations: int
    """P."""
    seed: int
    """By which they are drawn, for any N."""

    def told(self) -> dict[str, Any]:
        """What a record says of it."""
        cells = {name: getattr(self, name).tolist() for name in ("p", "p_family", "calibrated")}
        return cells | {"permutations": self.permutations, "seed": self.seed}


def shuffled(units: Tensor, permutations: int, seed: int) -> Tensor:
    """(1 + P, n) orders of n units, the first as they are; which ones depends on the units' numbers, (n,), all
    different, and the seed alone, whatever the machine."""
    drawn = splitmix64(splitmix64(torch.tensor(seed)) + torch.arange(permutations))
    orders = splitmix64(splitmix64(units) ^ drawn[:, None]).argsort(dim=1)
    return torch.cat([torch.arange(len(units))[None], orders])


def null_of_values(values: Tensor, identical: float, *, lower: bool, alone: bool, mirrored: bool, seed: int) -> Null:
    """The null of (1 + P, L, M) values, of which the first are those of the samples as they are.

    Args:
        identical: the value of a layer against itself; NaN: not known.
        lower: whether layers are alike where values are low.
        alone: whether these are a model's layers against themselves: the diagonal is left out.
        mirrored: whether a pair of layers is one cell: the later one's samples are permuted, and (m, l) has what (l, m)
            has.
    """
    value, sign = values[0], -1.0 if lower else 1.0
    if mirrored:
        values = values.triu(1) + values.triu(1).mT
    compared = ~values.isnan().any(0)
    if alone:
        compared.fill_diagonal_(False)
    alike = (sign * values).masked_fill(~compared, -torch.inf)
    reached = alike[0] - _ROUNDING * values.abs().amax(0)
    ascending = alike.sort(dim=0).values
    threshold = ascending[-(-19 * len(values) // 20) - 1]
    room = torch.ones_like(value) if identical != identical else sign * identical - threshold

    def told(cells: Tensor) -> Tensor:
        return cells.masked_fill(~compared, torch.nan)

    return Null(
        value=value,
        p=told((alike >= reached).sum(0).double() / len(values)),
        p_family=told((alike.amax((1, 2))[:, None, None] >= reached).sum(0).double() / len(values)),
        calibrated=told((alike[0] - threshold).relu() / room),
        mean=told(values[1:].mean(0)),
        threshold=told(sign * threshold),
        permutations=len(values) - 1,
        seed=seed,
    )


def require_permutations(permutations: int, samples: int | None = None, groups: int = 1) -> None:
    """Raises UserError for fewer permutations than a p of 0.05 takes, and TooFewSamples for more than so many groups of
    so many samples have beside their own order."""
    require_whole("null", permutations, FEWEST, f" permutations, as with fewer no p can reach {LEVEL}")
    if samples is not None and samples < 64:  # 64! is more than anybody can ask for
        most = factorial(samples) ** min(groups, 64) - 1
        if permutations > most:
            raise TooFewSamples(
                f"null: {samples} samples have {most} other orders, got {permutations} permutations: use more data, or "
                "ask for fewer"
            )
