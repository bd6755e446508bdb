"""Texts with a class each, tokenised."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from layersim.data.bad_samples import SKIP
from layersim.data.sequences import Sequences
from layersim.data.splits import Integers, Sample, Split
from layersim.data.tokenizers import Encoding, Tokenizer
from layersim.errors import UserError

_CHUNK = 1024  # texts tokenised at a time

Texts: TypeAlias = pa.Array | pa.ChunkedArray


class SentenceSplit(Split):
    """Texts (N,), or pairs of them, as arrow's arrays of strings; to be tokenised by `encode` before any is read."""

    def __init__(
        self,
        source: str,
        index: Integers,
        labels: Integers | None,
        texts: Texts,
        pairs: Texts | None = None,
        *,
        seed: int,
        offset: int = 0,
    ) -> None:
        super().__init__(source, index, labels, seed=seed, offset=offset)
        self.columns = [texts] if pairs is None else [texts, pairs]
        self.tokens = Sequences([])
        self.types: Sequences | None = None

    def encode(self, tokenizer: Tokenizer, limit: int, truncation: str) -> int:
        """Tokenises all texts, none of which may be missing or without a token; how many of them were cut."""
        tokens: list[list[int]] = []
        types: list[list[int]] = []
        cut = 0
        for start in range(0, len(self), _CHUNK):
            columns = [self._texts(column, start) for column in self.columns]
            name = partial(self._row, start)
            encoding, long = encoded(columns, tokenizer, limit, truncation, name)
            cut += long
            tokens += encoding.tokens
            types += encoding.types or []
        self.tokens = Sequences(tokens)
        self.types = Sequences(types) if types else None
        if len(empty := np.flatnonzero(self.tokens.lengths == 0)):
            raise UserError(
                f"{self._row(0, int(empty[0]))} is empty ({len(empty)} such rows): remove them from the data, or "
                f"choose a --data.tokenizer that adds tokens of its own"
            )
        return cut

    def inputs(self, place: int) -> Sample:
        if len(self.tokens) != len(self):
            raise UserError("no tokenizer is known yet: set --data.tokenizer, or call check(backbone) first")
        sample: Sample = {"input_ids": self.tokens[place]}
        if self.types is not None:
            sample["token_type_ids"] = self.types[place]
        return sample

    def _texts(self, column: Texts, start: int) -> list[str]:
        texts: list[str | None] = column.slice(start, _CHUNK).to_pylist()
        if None in texts:
            raise UserError(f"{self._row(start, texts.index(None))} has no text: remove it from the data, {SKIP}")
        return [text for text in texts if text is not None]

    def _row(self, start: int, place: int) -> str:
        return f"row {self.index[start + place] + self.offset} of split {self.source}"


def encoded(
    columns: list[list[str]], tokenizer: Tokenizer, limit: int, truncation: str, row: Callable[[int], str]
) -> tuple[Encoding, int]:
    """The tokens of texts (N,) in one or two columns, and how many of them were cut to the limit, where `truncation` is
    "cut" and not "refuse"; `row` tells what one of the N is called."""
    encoding = tokenizer.encode(*columns)
    long = [place for place, tokens in enumerate(encoding.tokens) if len(tokens) > limit]
    if long and truncation == "refuse":
        raise UserError(
            f"{row(long[0])} has {len(encoding.tokens[long[0]])} tokens, but {limit} is the most: raise "
            f"--data.max_length as far as the model reads, or set --data.truncation cut"
        )
    if long:
        shorter = tokenizer.encode(*([column[place] for place in long] for column in columns), max_length=limit)
        for rows, by in ((encoding.tokens, shorter.tokens), (encoding.types or [], shorter.types or [])):
            for place, tokens in zip(long, by, strict=False):
                rows[place] = tokens
    return encoding, len(long)
