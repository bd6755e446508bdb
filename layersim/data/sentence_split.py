"""Texts with a class each, tokenised."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from layersim.data.bad_samples import SKIP
from layersim.data.sequences import Sequences, Tokens
from layersim.data.splits import Integers, Sample, Split
from layersim.data.tokenizers import Encoding, Tokenizer
from layersim.errors import UserError

_CHUNK = 1024  # texts tokenised at a time

Texts: TypeAlias = pa.Array | pa.ChunkedArray


class SentenceSplit(Split):
    """Texts (N,), or pairs of them, as arrow's arrays of strings; to be tokenised by `encode` before any is read."""

    random = False

    def __init__(
        self,
        source: str,
        index: Integers,
        labels: Integers | None,
        *columns: Texts,
        seed: int,
        offset: int = 0,
    ) -> None:
        super().__init__(source, index, labels, seed=seed, offset=offset)
        self.columns = columns
        self.rows: dict[str, Sequences] = {}

    def encode(self, tokenizer: Tokenizer, limit: int, truncation: str) -> int:
        """Tokenises all texts, none of which may be missing or without a token; how many of them were cut."""
        rows: dict[str, list[Tokens]] = {"input_ids": []}
        cut = 0
        for start in range(0, len(self), _CHUNK):
            columns = [self._texts(column, start) for column in self.columns]
            encoding, long = encoded(columns, tokenizer, limit, truncation, partial(self._row, start))
            cut += long
            for name, found in encoding.items():
                rows.setdefault(name, []).extend(np.asarray(row, np.int32) for row in found)
        self.rows = {name: Sequences(each) for name, each in rows.items()}
        self.tokens = self.rows["input_ids"]
        if len(empty := np.flatnonzero(self.tokens.lengths == 0)):
            raise UserError(
                f"{self._row(0, int(empty[0]))} is empty ({len(empty)} such rows): remove them from the data, or "
                f"choose a --data.tokenizer that adds tokens of its own"
            )
        return cut

    def inputs(self, place: int) -> Sample:
        if not self.rows:
            raise UserError("no tokenizer is known yet: set --data.tokenizer, or call check(backbone) first")
        return {name: rows[place] for name, rows in self.rows.items()}

    def _texts(self, column: Texts, start: int) -> list[str]:
        texts: list[str | None] = column.slice(start, _CHUNK).to_pylist()
        if None in texts:
            raise UserError(f"{self._row(start, texts.index(None))} has no text: remove it from the data, {SKIP}")
        return [text for text in texts if text is not None]

    def _row(self, start: int, place: int) -> str:
        return f"row {self.index[start + place] + self.offset} of split {self.source}"


def encoded(
    columns: list[list[str]], tokenizer: Tokenizer, limit: int, truncation: str, called: Callable[[int], str]
) -> tuple[Encoding, int]:
    """The tokens of texts (N,) in one or two columns, and how many of them were cut to the limit, where `truncation` is
    "cut" and not "refuse"; `called` names one of the N."""
    encoding = tokenizer.encode(*columns)
    tokens = encoding["input_ids"]
    long = [place for place, row in enumerate(tokens) if len(row) > limit]
    if long and truncation == "refuse":
        raise UserError(
            f"{called(long[0])} has {len(tokens[long[0]])} tokens, but {limit} is the most: raise --data.max_length as "
            f"far as the model reads, or set --data.truncation cut"
        )
    if long:
        shorter = tokenizer.encode(*([column[place] for place in long] for column in columns), max_length=limit)
        for name, rows in shorter.items():
            for place, row in zip(long, rows, strict=True):
                encoding[name][place] = row
    return encoding, len(long)
