"""Texts and pairs of texts with labels, from anything that `datasets.load_dataset` opens."""

from typing import Any

import pyarrow as pa
from datasets import Dataset

from layersim.data.bad_samples import Faults, text_faults
from layersim.data.columns import check_texts, read_texts
from layersim.data.duplicates import contents
from layersim.data.sentences import SentenceData, SentenceSplit
from layersim.data.tables import Rows, TableData


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
        self.text_column = text_column
        self.pair_column = pair_column

    def open(self) -> dict[str, SentenceSplit]:
        splits = {role: self._split(chosen) for role, chosen in self.rows().items()}
        self.compare({role: contents(*split.columns) for role, split in splits.items()})
        return splits

    def faults(self, data: Dataset, split: str) -> Faults:
        text, *pair = (text_faults(texts) for texts in self._columns(data).values())
        return text | (pair[0] if pair else {})

    def _columns(self, data: Dataset) -> dict[str, pa.ChunkedArray]:
        """By its option, each column of texts (N,)."""
        named = {"text_column": self.text_column, "pair_column": self.pair_column}
        return {option: read_texts(data, name, option=option) for option, name in named.items() if name is not None}

    def _split(self, rows: Rows) -> SentenceSplit:
        columns = {option: texts.take(rows.index) for option, texts in self._columns(rows.data).items()}
        for option, texts in columns.items():
            check_texts(texts, getattr(self, option), rows.index + rows.offset, option=option)
        return SentenceSplit(
            rows.source, rows.index, rows.labels, *columns.values(), seed=self.seed, offset=rows.offset
        )
