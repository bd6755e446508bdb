"""Texts and pairs of texts with labels, from anything that `datasets.load_dataset` opens."""

from typing import Any

from layersim.data.columns import read_texts
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
        return {role: self._split(chosen) for role, chosen in self.rows().items()}

    def _split(self, rows: Rows) -> SentenceSplit:
        texts = read_texts(rows.data, self.text_column, option="text_column").take(rows.index)
        pairs = None
        if self.pair_column is not None:
            pairs = read_texts(rows.data, self.pair_column, option="pair_column").take(rows.index)
        return SentenceSplit(rows.source, rows.index, rows.labels, texts, pairs, seed=self.seed, offset=rows.offset)
