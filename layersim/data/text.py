"""Texts and pairs of texts with a class each, tokenised: wherever they come from, and from anything that
`datasets.load_dataset` opens."""

from abc import abstractmethod
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_info

from layersim.data.account import Contents, contents
from layersim.data.bad_samples import Faults, text_faults
from layersim.data.base import SplitDataModule
from layersim.data.columns import check_texts, read_texts, streamed_label
from layersim.data.inputs import TextInputs
from layersim.data.sentence_split import SentenceSplit, encoded
from layersim.data.sequences import PadCollate
from layersim.data.source_data import TableData
from layersim.data.splits import Integers, Sample, Split
from layersim.data.streams import Row
from layersim.data.tokenizers import Tokenizer, check_vocabulary, open_tokenizer, tokenizer_of
from layersim.errors import UserError, at_least, check_choice

Truncation = Literal["cut", "refuse"]


class SentenceData(SplitDataModule):
    """Texts, or pairs of texts, with a class each.

    A batch holds, all int64: "input_ids", "attention_mask" and, where the tokenizer makes them, "token_type_ids", each
    (N, T) with T the batch's longest text and the padding on the right; "label" and "index" (N,). Texts are tokenised
    once, at the start, and kept in memory (4 bytes a token). A text that gives no token at all is an error; an empty
    text is accepted where the tokenizer adds tokens of its own ([CLS], [SEP], an end).

    Args:
        tokenizer: a name on the hub or a local folder, for `transformers.AutoTokenizer`; "bytes" for the byte-level
            one; None: the backbone's own.
        max_length: tokens of a text, or of a pair, at most; the model's positions, where it has fewer.
        truncation: what becomes of longer ones: "cut", and told how many, or "refuse".
        length_bucketing: group texts of similar length into batches, inside shuffled windows of 50.
        **loader: the options of SplitDataModule.
    """

    def __init__(
        self,
        *,
        tokenizer: str | None = None,
        max_length: int = 256,
        truncation: Truncation = "cut",
        length_bucketing: bool = False,
        **loader: Any,
    ) -> None:
        super().__init__(**loader)
        self.tokenizer_name = tokenizer
        self.tokenizer: Tokenizer | None = None
        self.max_length = self.limit = at_least(8, "max_length", max_length)
        check_choice("truncation", truncation, Truncation)
        self.truncation = truncation
        self.length_bucketing = length_bucketing

    @abstractmethod
    def open(self) -> dict[str, SentenceSplit]:
        """The splits, not tokenised yet; sets class_names where they are known."""

    def load(self) -> dict[str, Split]:
        splits = self.open()
        if self.tokenizer_name is not None:
            self._encode(splits, open_tokenizer(self.tokenizer_name))
        return dict(splits)

    def adapt(self, backbone: Any) -> None:
        limit = min(self.max_length, getattr(backbone, "max_positions", None) or self.max_length)
        tokenizer = tokenizer_of(self.tokenizer_name, backbone, self.tokenizer)
        splits = {role: split for role, split in self.splits.items() if isinstance(split, SentenceSplit)}
        known = tokenizer is self.tokenizer and limit == self.limit
        if not known or not all(split.rows for split in splits.values()):
            self.limit = limit
            self._encode(splits, tokenizer)

    def inputs(self, backbone: Any) -> TextInputs:
        self.adapt(backbone)
        assert self.tokenizer is not None
        assert isinstance(self.collate, PadCollate)
        pairs = getattr(self, "pair_column", None) is not None
        return TextInputs(self.tokenizer, self.limit, self.truncation, self.collate, pairs=pairs)

    def check_sample(self, sample: Sample, split: str, backbone: Any) -> None:
        assert isinstance(self.collate, PadCollate)
        assert self.tokenizer is not None
        largest = self.tokenizer.vocabulary_size - 1  # of a stream nobody knows it beforehand
        if isinstance(encoded := self.splits.get(split), SentenceSplit):
            largest = int(encoded.tokens.values.max(initial=-1))
        for token in (largest, self.collate.padding["input_ids"]):
            check_vocabulary(token, split, backbone)

    def _encode(self, splits: dict[str, SentenceSplit], tokenizer: Tokenizer) -> None:
        self.tokenizer = None  # until all are read by one
        pad_id = _padding(tokenizer)
        cut = {role: split.encode(tokenizer, self.limit, self.truncation) for role, split in splits.items()}
        if any(cut.values()):
            told = ", ".join(f"{count} of {len(splits[role])} in {role}" for role, count in cut.items())
            rank_zero_info(f"Texts cut to {self.limit} tokens: {told} (--data.max_length).")
        if self.length_bucketing:
            for split in splits.values():
                split.lengths = split.tokens.lengths
        self.tokenizer = tokenizer
        self.collate = PadCollate({"input_ids": pad_id, "token_type_ids": 0})


class Text(TableData, SentenceData):
    """Classification of texts or pairs of texts, in GLUE's shape. "index" is the row in the split that was opened.

    Args:
        path: a file (csv, tsv, json, jsonl, parquet, arrow), a folder or a name on the hub (see `Source`).
        text_column: the column of texts (for GLUE's single sentences: sentence).
        pair_column: the column of second texts, where a sample is a pair (MNLI: text_column premise, pair_column
            hypothesis).
        **options: those of TableData and SentenceData.
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

    def contents(self, split: SentenceSplit) -> Contents:
        return contents(*split.columns)

    def _encode(self, splits: dict[str, SentenceSplit], tokenizer: Tokenizer) -> None:
        super()._encode(splits, tokenizer)
        if self.stream is not None:
            assert self.label_column is not None
            columns = [*self.content_columns.values()]
            options: dict[str, Any] = {"tokenizer": tokenizer, "limit": self.limit, "truncation": self.truncation}
            self.stream.sample = partial(streamed_text, columns=columns, label=self.label_column, **options)

    def faults(self, data: Dataset, split: str) -> Faults:
        return {row: fault for texts in self._columns(data).values() for row, fault in text_faults(texts).items()}

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
    if odd := [text for (text,) in texts if not isinstance(text, str) or "\0" in text]:
        raise UserError(f"texts must be strings without NUL, but a row has {odd[0]!r}: change --data.text_column")
    encoding, _ = encoded(texts, tokenizer, limit, truncation, lambda _: "a row of the stream")
    if not encoding["input_ids"][0]:
        raise UserError("a row of the stream is empty: choose a --data.tokenizer that adds tokens of its own")
    sample: Sample = {name: np.asarray(rows[0], np.int32) for name, rows in encoding.items()}
    return sample | {"label": streamed_label(row[label])}


def _padding(tokenizer: Tokenizer) -> int:
    if tokenizer.pad_id is not None:
        return tokenizer.pad_id
    if tokenizer.eos_id is None:
        raise UserError(
            f"the tokenizer {tokenizer.name} has neither a padding token nor one that ends a text: "
            f"change --data.tokenizer, or give it a padding token"
        )
    rank_zero_info(
        f"The tokenizer {tokenizer.name} has no padding token: its end of text pads, told apart by attention_mask."
    )
    return tokenizer.eos_id
