"""A labelled table on disk or on the hub, dealt out to training, validation, test and prediction."""

import math
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from layersim.data.base import at_least
from layersim.data.sources import open_split, read_labels, whence
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
    """(N,) their classes, or None where there are none."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Where the rows lie, and which of them are for what. The options are those of `Text`.

    Raises:
        UserError: an option out of its range.
    """

    path: str
    name: str | None
    label_column: str
    train_split: str
    val_split: str | None
    test_split: str | None
    predict_split: str | None
    val_fraction: float
    max_train_samples: int | None
    max_eval_samples: int | None
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise UserError(f"expected 0 < val_fraction < 1, got {self.val_fraction}: change --data.val_fraction")
        for option in ("max_train_samples", "max_eval_samples"):
            limit = getattr(self, option)
            if limit is not None:
                at_least(1, option, limit)

    def open(self) -> tuple[dict[str, Rows], list[str] | None]:
        """The rows of each split, and the names of the classes where they are known."""
        data = open_split(self.path, self.train_split, name=self.name, option="train_split")
        labels, names = read_labels(data, self.label_column, names=None)
        kept = np.arange(len(labels))
        rows: dict[str, Rows] = {}
        if self.val_split is None:
            count = math.ceil(self.val_fraction * len(labels))
            kept, held = hold_out(labels, count, seed=self.seed, remedy="--data.val_fraction or --data.val_split")
            rows["val"] = self._choose(data, self.train_split, held, labels, self.max_eval_samples)
        rows["train"] = self._choose(data, self.train_split, kept, labels, self.max_train_samples)
        for role in ("val", "test", "predict"):
            split: str | None = getattr(self, f"{role}_split")
            if split is not None:
                rows[role] = self._open_evaluation(role, split, names)
        return rows, names

    def _open_evaluation(self, role: str, split: str, names: list[str] | None) -> Rows:
        data = open_split(self.path, split, name=self.name, option=f"{role}_split")
        labels = None
        if role != "predict" or self.label_column in data.column_names:
            labels, _ = read_labels(data, self.label_column, names=names)
            if role == "predict" and (labels == -1).all():  # GLUE's test data, whose labels are kept secret
                labels = None
        return self._choose(data, split, np.arange(len(data)), labels, self.max_eval_samples)

    def _choose(self, data: Dataset, split: str, index: Integers, labels: Integers | None, most: int | None) -> Rows:
        if most is not None and most < len(index):
            index = np.sort(np.random.default_rng(self.seed).choice(index, most, replace=False))
        return Rows(data, *whence(data, split), index, None if labels is None else labels[index])
