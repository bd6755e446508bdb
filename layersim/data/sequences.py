"""Rows of tokens of unequal length: kept end to end, and padded when they meet in a batch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from layersim.data.splits import Integers, Sample

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


@dataclass(eq=False)
class PadCollate:
    """Makes a batch of samples whose rows of tokens are of unequal length: padded on the right to the longest.

    Beside the rows, each (N, T) int64, it has "attention_mask", 1 at tokens and 0 at padding, told apart by length and
    never by the padding token.
    """

    padding: Mapping[str, int]
    """By the name of the rows what stands behind them; "input_ids" among them."""

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        numbers = [{key: value for key, value in sample.items() if key not in self.padding} for sample in samples]
        batch: dict[str, Any] = default_collate(numbers)
        for key, value in self.padding.items():
            if key in samples[0]:
                rows = [torch.from_numpy(sample[key]) for sample in samples]
                batch[key] = pad_sequence(rows, batch_first=True, padding_value=value).long()
        batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths.unsqueeze(1)).long()
        return batch
