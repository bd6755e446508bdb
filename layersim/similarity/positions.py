"""What a sample's position in the data set decides: whether it is kept, and which jackknife group it is in."""

import torch
from torch import Tensor

from layersim.errors import UserError


def splitmix64(index: Tensor) -> Tensor:
    """A fixed pseudo-random int64 for every int64, no two alike (Steele, Lea and Flood 2014)."""

    def shifted(value: Tensor, bits: int) -> Tensor:
        return (value >> bits) & (2 ** (64 - bits) - 1)  # torch by itself shifts the sign in

    value = index + (0x9E3779B97F4A7C15 - 2**64)
    value = (value ^ shifted(value, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    value = (value ^ shifted(value, 27)) * (0x94D049BB133111EB - 2**64)
    return value ^ shifted(value, 31)


def as_positions(index: Tensor | None, samples: int, start: int = 0) -> Tensor:
    """The (n,) int64 positions of n samples, on the host; where None is given they count from `start`.

    Raises:
        UserError: what is given is not n integers.
    """
    if index is None:
        return torch.arange(start, start + samples)
    index = torch.as_tensor(index)
    if index.shape != (samples,) or index.is_floating_point():
        raise UserError(f"index: expected ({samples},) integers, one a sample, got {tuple(index.shape)} {index.dtype}")
    return index.cpu().long()


def require_distinct(ascending: Tensor) -> None:
    """Raises UserError where a position stands twice in (N,) ascending positions: a sample would count double."""
    twice = ascending[1:][ascending[1:] == ascending[:-1]]
    if len(twice):
        raise UserError(
            f"index: expected each sample once, but position {int(twice[0])} came more than once: use a sampler that "
            "does not pad the last shard, reset the metric between epochs, and give every token its own position"
        )


def dealt(units: Tensor, groups: int) -> Tensor:
    """(n,) numbers of units → (n,) numbers 0 … `groups` − 1 of the groups that they are in, whatever their order.

    By the hash and not in turn: data are often sorted by class, or repeat with a period, and groups dealt in turn would
    then be more alike than chance makes them.
    """
    return splitmix64(units) % groups
