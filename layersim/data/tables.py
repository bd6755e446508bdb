"""A labelled table on disk or on the hub, dealt out to training, validation, test and prediction."""

import math
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from layersim.data.account import held_out, share, tell
from layersim.data.base import at_least
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


@dataclass(frozen=True, kw_only=True)
class Table:
    """Where the rows lie, and which of them are for what. The options are those of `Text` and `Images`.

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
        """The rows of each split, and the names of the classes where they are known; says what was opened."""
        source = Source(self.path, name=self.name)
        data = source.split(self.train_split, option="train_split")
        labels = read_labels(data, self.label_column, role="train")
        assert labels.values is not None
        kept = np.arange(len(labels.values))
        rows: dict[str, Rows] = {}
        shares: list[str] = []
        if self.val_split is None:
            count = math.ceil(self.val_fraction * len(kept))
            remedy = "--data.val_fraction or --data.val_split"
            kept, held = hold_out(labels.values, count, seed=self.seed, remedy=remedy)
            rows["val"], said = self._choose("val", data, self.train_split, held, labels)
            shares.append(said)
        rows["train"], said = self._choose("train", data, self.train_split, kept, labels)
        shares.insert(0, said)
        for role in ("val", "test", "predict"):
            split: str | None = getattr(self, f"{role}_split")
            if split is not None:
                data = source.split(split, option=f"{role}_split")
                own = read_labels(data, self.label_column, role=role, names=labels.names)
                rows[role], said = self._choose(role, data, split, np.arange(len(data)), own)
                shares.append(said)
        tell(source.told(), shares)
        return rows, labels.names

    def _choose(self, role: str, data: Dataset, split: str, index: Integers, labels: Labels) -> tuple[Rows, str]:
        """The rows of a split, capped, and what is said of them."""
        found = len(index)
        most = self.max_train_samples if role == "train" else self.max_eval_samples
        if most is not None and most < found:
            index = np.sort(np.random.default_rng(self.seed).choice(index, most, replace=False))
        from_training = role == "val" and self.val_split is None
        note = held_out(split, self.val_fraction) if from_training else split if split != role else ""
        rows = Rows(data, *whence(data, split), index, None if labels.values is None else labels.values[index])
        return rows, share(role, len(index), found, "sample", note, labels.note)
