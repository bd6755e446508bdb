"""Rows of tokens of unequal length: kept end to end, and padded when they meet in a batch."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layersim.data.splits import Integers

Tokens = NDArray[np.int32]


class Sequences:
    """N rows of tokens, end to end in one array.

    Args:
        rows: the rows, each of any length.
    """

    def __init__(self, rows: Iterable[Sequence[int] | Tokens]) -> None:
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        self.values: Tokens = np.concatenate([np.empty(0, np.int32), *arrays])
        self.offsets: Integers = np.cumsum([0, *map(len, arrays)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, position: int) -> Tokens:
        return self.values[self.offsets[position] : self.offsets[position + 1]]

    @property
    def lengths(self) -> Integers:
        """(N,) tokens in each row."""
        return np.diff(self.offsets)

    @property
    def largest(self) -> int:
        """The largest token; −1 where there is none."""
        return int(self.values.max(initial=-1))


def padded_width(longest: int, *, multiple: int, limit: int) -> int:
    """The longest row's length, rounded up to a multiple, but not beyond the limit."""
    return min(-(-longest // multiple) * multiple, limit)


def pad(rows: Sequence[Tokens], value: int, width: int) -> Tensor:
    """(N, width) int64: each row from the left, then the value."""
    padded = torch.full((len(rows), width), value)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = torch.from_numpy(row)
    return padded


def attention_mask(rows: Sequence[Tokens], width: int) -> Tensor:
    """(N, width) int64: 1 at tokens and 0 at padding, told apart by length and never by the padding token."""
    lengths = torch.tensor([len(row) for row in rows])
    return (torch.arange(width) < lengths.unsqueeze(1)).long()
