"""A labelled table on disk or on the hub, dealt out to training, validation, test and prediction."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from layersim.data.account import held_out, share, tell
from layersim.data.bad_samples import Faults
from layersim.data.columns import Labels, label_faults, read_labels
from layersim.data.source_data import SourceData
from layersim.data.sources import whence
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


class TableData(SourceData):
    """Samples with a label each, from anything that `datasets.load_dataset` opens.

    Where `val_split` is None, the share held out of the training split is stratified by label.

    Args:
        path: a file (csv, tsv, json, jsonl, parquet, arrow), a folder or a name on the hub (see `Source`).
        label_column: the column of labels: class labels, integers, or strings (numbered in sorted order). The predict
            split may lack it, or hold −1 in some rows or in all. None: the data have no labels, and can be measured
            as far as that needs none.
        predict_split: the split to predict; None predicts the validation data.
        **options: those of SourceData.

    Raises:
        UserError: an option out of its range.
    """

    def __init__(
        self,
        path: str,
        *,
        label_column: str | None = "label",
        predict_split: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        if label_column is None and (self.streaming or self.other_splits["val"] is None):
            raise UserError("data without labels are only measured: set --data.val_split, or --data.label_column")
        self.label_column = label_column
        self.other_splits["predict"] = predict_split

    @property
    @abstractmethod
    def content_columns(self) -> dict[str, str]:
        """The columns that the backbone reads, by the option that names each."""

    @abstractmethod
    def faults(self, data: Dataset, split: str) -> Faults:
        """What is wrong with a split's rows, apart from their labels."""

    def rows(self) -> dict[str, Rows]:
        """The rows of each split; sets class_names where they are known, and says what was opened."""
        source = self.source()
        rows: dict[str, Rows] = {}
        shares: list[str] = []
        opened = {role: split for role, split in self.other_splits.items() if split is not None}

        def choose(role: str, data: Dataset, split: str, places: Integers, labels: Labels, note: str) -> None:
            left = self.capped(role, places)
            values = None if labels.values is None else labels.values[left]
            rows[role] = Rows(data, *whence(data, split), labels.rows[left], values)
            known, there = len(labels.names or ()), len(np.unique(labels.values)) if labels.values is not None else 0
            lacks = f"{known - there} of {known} classes absent" if role in ("val", "test") and there < known else ""
            shares.append(share(role, len(left), len(places), "sample", note, labels.note, lacks))

        if self.streaming:
            self.stream, held = self.streamed(source, self.content_columns, also=self.label_column)
            feature = (self.stream.rows.features or {}).get(self.label_column)
            names = list(feature.names) if isinstance(feature, ClassLabel) else None
            shares.append(self.stream.share)
            if held is not None:
                labels = read_labels(held, self.label_column, np.arange(len(held)), role="val", names=names)
                note = f"of those held out of {self.train_split} by val_fraction={self.val_fraction}"
                choose("val", held, f"what {self.train_split} holds out", np.arange(len(held)), labels, note)
        else:
            data = source.split(self.train_split, option="train_split")
            readable = self._readable(data, self.train_split, "train")
            labels = read_labels(data, self.label_column, readable, role="train")
            kept, own, names = np.arange(len(readable)), self.train_split != "train", labels.names
            if "val" not in opened:
                assert labels.values is not None
                remedy = "--data.val_fraction or --data.val_split"
                kept, apart = hold_out(labels.values, self.held_out(len(kept)), seed=self.seed, remedy=remedy)
            choose("train", data, self.train_split, kept, labels, self.train_split if own else "")
            if "val" not in opened:
                choose("val", data, self.train_split, apart, labels, held_out(self.train_split, self.val_fraction))
        for role, split in opened.items():
            data = source.split(split, option=f"{role}_split")
            readable = self._readable(data, split, role)
            labels = read_labels(data, self.label_column, readable, role=role, names=names)
            choose(role, data, split, np.arange(len(readable)), labels, split if split != role else "")
        tell(source.told(), shares)
        self.class_names = names
        return rows

    def _readable(self, data: Dataset, split: str, role: str) -> Integers:
        def find() -> Faults:
            unlabelled = {} if self.label_column is None else label_faults(data, self.label_column, role=role)
            return unlabelled | self.faults(data, split)

        return self.readable(data, split, find)
