"""Texts and pairs of texts with labels, from anything that `datasets.load_dataset` opens."""

from typing import Any, Literal

from layersim.data.columns import read_texts
from layersim.data.sentences import SentenceData, SentenceSplit
from layersim.data.tables import Rows, Table


class Text(SentenceData):
    """Classification of texts or pairs of texts, in GLUE's shape. "index" is the row in the split that was opened.

    Args:
        path: a file (csv, tsv, json, jsonl, parquet, arrow), a folder or a name on the hub (see `open_split`).
        tokenizer: see SentenceData.
        name: which configuration of the data set, where it has several (for GLUE: sst2, mnli, …).
        text_column: the column of texts (for GLUE's single sentences: sentence).
        pair_column: the column of second texts, where a sample is a pair (MNLI: text_column premise, pair_column
            hypothesis).
        label_column: the column of labels: class labels, integers, or strings (numbered in sorted order). The predict
            split may lack it, or hold −1 in some rows or in all.
        train_split: the split to train on.
        val_split: the split to validate on; None holds out a stratified share of the training split.
        test_split: the split to test on; None: there is no test data.
        predict_split: the split to predict; None predicts the validation data.
        val_fraction: the share held out where val_split is None, rounded up.
        max_train_samples: train on this many samples, drawn by the seed; None: on all.
        max_eval_samples: the same for each of the other splits.
        max_length: see SentenceData.
        truncation: see SentenceData.
        length_bucketing: see SentenceData.
        pad_to_multiple: see SentenceData.
        **loader: the options of SplitDataModule.

    Raises:
        UserError: an option out of its range.
    """

    def __init__(
        self,
        path: str,
        *,
        tokenizer: str | None = None,
        name: str | None = None,
        text_column: str = "text",
        pair_column: str | None = None,
        label_column: str = "label",
        train_split: str = "train",
        val_split: str | None = None,
        test_split: str | None = None,
        predict_split: str | None = None,
        val_fraction: float = 0.1,
        max_train_samples: int | None = None,
        max_eval_samples: int | None = None,
        max_length: int = 256,
        truncation: Literal["cut", "refuse"] = "cut",
        length_bucketing: bool = False,
        pad_to_multiple: int = 1,
        **loader: Any,
    ) -> None:
        super().__init__(
            tokenizer=tokenizer,
            max_length=max_length,
            truncation=truncation,
            length_bucketing=length_bucketing,
            pad_to_multiple=pad_to_multiple,
            **loader,
        )
        self.text_column = text_column
        self.pair_column = pair_column
        self.table = Table(
            path=path,
            name=name,
            label_column=label_column,
            train_split=train_split,
            val_split=val_split,
            test_split=test_split,
            predict_split=predict_split,
            val_fraction=val_fraction,
            max_train_samples=max_train_samples,
            max_eval_samples=max_eval_samples,
            seed=self.seed,
        )

    def open(self) -> dict[str, SentenceSplit]:
        rows, self.class_names = self.table.open()
        return {role: self._split(chosen) for role, chosen in rows.items()}

    def _split(self, rows: Rows) -> SentenceSplit:
        texts = read_texts(rows.data, self.text_column, option="text_column").take(rows.index)
        pairs = None
        if self.pair_column is not None:
            pairs = read_texts(rows.data, self.pair_column, option="pair_column").take(rows.index)
        return SentenceSplit(rows.source, rows.index, rows.labels, texts, pairs, seed=self.seed, offset=rows.offset)
