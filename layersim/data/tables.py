"""A labelled table on disk or on the hub, dealt out to training, validation, test and prediction."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from layersim.data.account import held_out, share, tell
from layersim.data.base import SplitDataModule
from layersim.data.columns import Labels, read_labels
from layersim.data.sources import Source, whence
from layersim.data.splits import Integers, hold_out
from layersim.errors import UserError


@dataclass(frozen=True)
class Rows:
    """Some rows of a source, for one of the splits."""

    data: Dataset
    """All that was opened: a split of the data set, or a slice of one."""
    source: str
    """The name of that split."""
    offset: int
    """Where in it the slice begins."""
    index: Integers
    """(N,) the rows chosen, ascending."""
    labels: Integers | None
    """(N,) their classes, or None where there are none; −1 marks a row without one, in the predict split alone."""


class TableData(SplitDataModule):
    """Samples with a label each, from anything that `datasets.load_dataset` opens.

    Args:
        path: a file (csv, tsv, json, jsonl, parquet, arrow), a folder or a name on the hub (see `Source`).
        name: which configuration of the data set, where it has several (for GLUE: sst2, mnli, …).
        label_column: the column of labels: class labels, integers, or strings (numbered in sorted order). The predict
            split may lack it, or hold −1 in some rows or in all.
        train_split: the split to train on.
        val_split: the split to validate on; None holds out a stratified share of the training split.
        test_split: the split to test on; None: there is no test data.
        predict_split: the split to predict; None predicts the validation data.
        val_fraction: the share held out where val_split is None, rounded up.
        **options: those of SplitDataModule.

    Raises:
        UserError: an option out of its range.
    """

    def __init__(
        self,
        path: str,
        *,
        name: str | None = None,
        label_column: str = "label",
        train_split: str = "train",
        val_split: str | None = None,
        test_split: str | None = None,
        predict_split: str | None = None,
        val_fraction: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 0 < val_fraction < 1:
            raise UserError(f"expected 0 < val_fraction < 1, got {val_fraction}: change --data.val_fraction")
        self.path = path
        self.name = name
        self.label_column = label_column
        self.train_split = train_split
        self.other_splits = {"val": val_split, "test": test_split, "predict": predict_split}
        self.val_fraction = val_fraction

    def rows(self) -> dict[str, Rows]:
        """The rows of each split; sets class_names where they are known, and says what was opened."""
        source = Source(self.path, name=self.name)
        data = source.split(self.train_split, option="train_split")
        labels = read_labels(data, self.label_column, role="train")
        assert labels.values is not None
        kept = np.arange(len(labels.values))
        rows: dict[str, Rows] = {}
        shares: list[str] = []

        def choose(role: str, data: Dataset, split: str, index: Integers, labels: Labels, note: str) -> None:
            left = self.capped(role, index)
            values = None if labels.values is None else labels.values[left]
            rows[role] = Rows(data, *whence(data, split), left, values)
            shares.append(share(role, len(left), len(index), "sample", note, labels.note))

        held: Integers | None = None
        if self.other_splits["val"] is None:
            count = math.ceil(self.val_fraction * len(kept))
            remedy = "--data.val_fraction or --data.val_split"
            kept, held = hold_out(labels.values, count, seed=self.seed, remedy=remedy)
        choose("train", data, self.train_split, kept, labels, self.train_split if self.train_split != "train" else "")
        if held is not None:
            choose("val", data, self.train_split, held, labels, held_out(self.train_split, self.val_fraction))
        for role, split in self.other_splits.items():
            if split is not None:
                data = source.split(split, option=f"{role}_split")
                own = read_labels(data, self.label_column, role=role, names=labels.names)
                choose(role, data, split, np.arange(len(data)), own, split if split != role else "")
        tell(source.told(), shares)
        self.class_names = labels.names
        return rows
