"""Texts and pairs of texts with labels, from anything that `datasets.load_dataset` opens."""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from layersim.data.bad_samples import Faults, text_faults
from layersim.data.columns import check_texts, read_texts, streamed_label
from layersim.data.duplicates import contents
from layersim.data.sentence_split import SentenceSplit, encoded
from layersim.data.sentences import SentenceData
from layersim.data.source_data import TableData
from layersim.data.splits import Integers, Sample
from layersim.data.streams import Row
from layersim.data.tokenizers import Tokenizer
from layersim.errors import UserError


class Text(TableData, SentenceData):
    """Classification of texts or pairs of texts, in GLUE's shape. "index" is the row in the split that was opened.

    Args:
        path: a file (csv, tsv, json, jsonl, parquet, arrow), a folder or a name on the hub (see `Source`).
        text_column: the column of texts (for GLUE's single sentences: sentence).
        pair_column: the column of second texts, where a sample is a pair (MNLI: text_column premise, pair_column
            hypothesis).
        **options: those of TableData and SentenceData.

    Raises:
        UserError: an option out of its range.
    """

    def __init__(self, path: str, *, text_column: str = "text", pair_column: str | None = None, **options: Any) -> None:
        super().__init__(path, **options)
        if self.streaming and self.length_bucketing:
            raise UserError("a stream's lengths are not known beforehand: leave --data.length_bucketing out")
        self.text_column = text_column
        self.pair_column = pair_column

    @property
    def content_columns(self) -> dict[str, str]:
        named = {"text_column": self.text_column, "pair_column": self.pair_column}
        return {option: name for option, name in named.items() if name is not None}

    def open(self) -> dict[str, SentenceSplit]:
        splits: dict[str, SentenceSplit] = super().open()
        if self.stream is None:
            self.compare({role: contents(*split.columns) for role, split in splits.items()})
        return splits

    def _encode(self, splits: dict[str, SentenceSplit], tokenizer: Tokenizer) -> None:
        super()._encode(splits, tokenizer)
        if self.stream is not None:
            assert self.label_column is not None
            columns = [*self.content_columns.values()]
            options: dict[str, Any] = {"tokenizer": tokenizer, "limit": self.limit, "truncation": self.truncation}
            self.stream.sample = partial(streamed_text, columns=columns, label=self.label_column, **options)

    def faults(self, data: Dataset, split: str) -> Faults:
        text, *pair = (text_faults(texts) for texts in self._columns(data).values())
        return text | (pair[0] if pair else {})

    def _columns(self, data: Dataset) -> dict[str, pa.ChunkedArray]:
        """By its option, each column of texts (N,)."""
        return {option: read_texts(data, name, option=option) for option, name in self.content_columns.items()}

    def split(self, data: Dataset, source: tuple[str, int], index: Integers, labels: Integers | None) -> SentenceSplit:
        name, offset = source
        columns = {option: texts.take(index) for option, texts in self._columns(data).items()}
        for option, texts in columns.items():
            check_texts(texts, getattr(self, option), index + offset, option=option)
        return SentenceSplit(name, index, labels, *columns.values(), seed=self.seed, offset=offset)


def streamed_text(
    row: Row, *, columns: list[str], label: str, tokenizer: Tokenizer, limit: int, truncation: str
) -> Sample:
    """A row of a stream as a sample: its text, or its two texts, as tokens."""
    texts = [[row[column]] for column in columns]
    if not all(isinstance(text, str) for (text,) in texts):
        raise UserError(f"texts must be strings, but a row has {texts[0][0]!r}: change --data.text_column")
    encoding, _ = encoded(texts, tokenizer, limit, truncation, lambda _: "a row of the stream")
    if not encoding.tokens[0]:
        raise UserError("a row of the stream is empty: choose a --data.tokenizer that adds tokens of its own")
    sample: Sample = {"input_ids": np.asarray(encoding.tokens[0], np.int32)}
    if encoding.types is not None:
        sample["token_type_ids"] = np.asarray(encoding.types[0], np.int32)
    return sample | {"label": streamed_label(row[label])}
