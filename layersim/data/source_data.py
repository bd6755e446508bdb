"""Data of a `Source`: which splits are read, what is held out, left out, and shared between splits; and of those with
a label each, how they are dealt out."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Image

from layersim.data.account import Contents, held_out, share, tell, tell_duplicates
from layersim.data.bad_samples import Faults, OnBadSample, left_over
from layersim.data.base import SplitDataModule
from layersim.data.columns import Labels, label_faults, need_column, read_labels
from layersim.data.sources import SampleBy, Source, whence
from layersim.data.splits import Integers, Split, hold_out
from layersim.data.streams import Stream, hold_out_rows
from layersim.errors import UserError, as_user_error, at_least, check_choice, check_share


class SourceData(SplitDataModule):
    """Samples from anything that `datasets.load_dataset` opens.

    Args:
        path: a file (txt, csv, tsv, json, jsonl, parquet, arrow), a folder or a name on the hub (see `Source`).
        name: which configuration of the data set, where it has several (for GLUE: sst2, mnli, …).
        train_split: the split to train on.
        val_split: the split to validate on; None holds out a share of the training split.
        test_split: the split to test on; None: there is no test data.
        val_fraction: the share held out where val_split is None, rounded up.
        on_bad_sample: what becomes of samples that cannot be read: images that are cut short, missing, no images or too
            large, texts that are missing, no UTF-8 or hold NUL, rows without a label. "error" stops at the first that
            is met. "skip" reads all of a split once before anything is drawn from it, each image decoded, and leaves
            them out: the same on any number of processes and in every run, told and counted. What damages a file as a
            whole (no JSON, other columns) is an error either way.
        streaming: read the training split as a stream, from its first row to its last and none of it written to disk
            (see `Stream` for the order). Evaluation splits are opened whole as ever. Where val_split is None, rows are
            held out whose content's hash falls into val_fraction, and the first max_eval_samples of them validate.
        shuffle_buffer: rows of a stream out of which the next is drawn.
        find_duplicates: tell how many samples of validation and test data are in the training data too, by their
            content. None: unless that takes reading more than a GiB.
        **options: those of SplitDataModule.
    """

    def __init__(
        self,
        path: str,
        *,
        name: str | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        test_split: str | None = None,
        val_fraction: float = 0.1,
        on_bad_sample: OnBadSample = "error",
        streaming: bool = False,
        shuffle_buffer: int = 1000,
        find_duplicates: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_choice("on_bad_sample", on_bad_sample, OnBadSample)
        if streaming and (on_bad_sample == "skip" or find_duplicates or options.get("max_train_samples")):
            raise UserError(
                "of a stream neither bad samples nor duplicates can be found beforehand, nor a number of samples be "
                "drawn: leave --data.on_bad_sample, --data.find_duplicates and --data.max_train_samples out"
            )
        self.streaming = streaming
        self.shuffle_buffer = at_least(1, "shuffle_buffer", shuffle_buffer)
        check_share("val_fraction", val_fraction, remedy="Change --data.val_fraction.")
        self.path = path
        self.configuration = name
        self.train_split = train_split
        self.other_splits = {"val": val_split, "test": test_split}
        self.val_fraction = val_fraction
        self.skips = on_bad_sample == "skip"
        self.find_duplicates = find_duplicates
        self._left_out: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({"left_out": self.left_out} if self.skips else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        training = self.trainer is None or self.trainer.training
        if training and (then := state_dict.get("left_out", 0)) != self.left_out:
            warnings.warn(
                f"{self.left_out} samples cannot be read now, but {then} could not when the checkpoint was written: "
                "the training goes on with others, in another order (--data.on_bad_sample).",
                UserWarning,
                stacklevel=2,
            )

    def source(self, sample_by: SampleBy = "line") -> Source:
        return Source(self.path, name=self.configuration, sample_by=sample_by, marks=self.skips)

    def streamed(
        self, source: Source, columns: Mapping[str, str], also: str | None = None
    ) -> tuple[Stream, Dataset | None]:
        """The stream to train on, which `adapt` tells how samples are made of rows, and what it holds out to validate.
        By the option that named each: the columns that the backbone reads, and `also` that of labels."""
        name = f"the stream {self.train_split} of {self.path}"
        rows = source.stream(self.train_split)
        with as_user_error(f"{name} cannot be read", "Change --data.path"):
            there = rows.column_names or [*next(iter(rows.take(1)), {})]  # of some formats a row tells
        source.check_columns(there)
        for option, column in {**columns, **({"label_column": also} if also else {})}.items():
            need_column(there, column, option=option)
            if isinstance((rows.features or {}).get(column), Image):
                rows = rows.cast_column(column, Image(decode=False))
        held: Dataset | None = None
        if self.other_splits["val"] is None:
            count = self.limits["max_eval_samples"]
            rows, held = hold_out_rows(rows, [*columns.values()], self.val_fraction, count, name)
        return Stream(rows, self.train_split, name, seed=self.seed, buffer=self.shuffle_buffer), held

    def held_out(self, rows: int) -> int:
        """How many of the training split's rows validate, where no split of their own does."""
        return math.ceil(self.val_fraction * rows)

    def readable(self, data: Dataset, split: str, find: Callable[[], Faults]) -> Integers:
        """The rows of a split that are used, ascending: all, or, where bad ones are skipped, those without a fault."""
        if not self.skips:
            return np.arange(len(data))
        faults, told = find(), split in self._left_out
        self._left_out[split] = len(faults)
        self.left_out = sum(self._left_out.values())
        return left_over(len(data), faults, *whence(data, split), told=told)


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

    @abstractmethod
    def split(self, data: Dataset, source: tuple[str, int], index: Integers, labels: Integers | None) -> Split:
        """These rows (N,) of what was opened, ascending, with their classes (N,) where there are any; the source is the
        name of the data set's split, and where in it what was opened begins."""

    @abstractmethod
    def contents(self, split: Any) -> Contents:
        """What a split's samples are, by which they are found in others."""

    def open(self) -> dict[str, Any]:
        """The splits; sets class_names where they are known, and says what was opened and what splits share."""
        source = self.source()
        splits: dict[str, Any] = {}
        shares: list[str] = []
        names: list[str] | None = None
        opened = {role: split for role, split in self.other_splits.items() if split is not None}

        def choose(role: str, data: Dataset, split: str, places: Integers, labels: Labels, note: str) -> None:
            left = self.capped(role, places)
            values = None if labels.values is None else labels.values[left]
            splits[role] = self.split(data, whence(data, split), labels.rows[left], values)
            known, there = len(labels.names or ()), len(np.unique(values)) if values is not None else 0
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
        for role, split in (({} if self.streaming else {"train": self.train_split}) | opened).items():
            data = source.split(split, option=f"{role}_split")
            readable = self.readable(data, split, partial(self._all_faults, data, split, role))
            labels = read_labels(data, self.label_column, readable, role=role, names=names)
            kept, apart = np.arange(len(readable)), None
            if role == "train":
                names = labels.names
                if "val" not in opened:
                    assert labels.values is not None
                    remedy = "--data.val_fraction or --data.val_split"
                    kept, apart = hold_out(labels.values, self.held_out(len(kept)), seed=self.seed, remedy=remedy)
            choose(role, data, split, kept, labels, split if split != role else "")
            if apart is not None:
                choose("val", data, split, apart, labels, held_out(split, self.val_fraction))
        tell(source.told(), shares)
        self.class_names = names
        if self.stream is None:
            samples = {role: self.contents(split) for role, split in splits.items()}
            tell_duplicates(samples, "sample", wanted=self.find_duplicates)
        return splits

    def _all_faults(self, data: Dataset, split: str, role: str) -> Faults:
        unlabelled = {} if self.label_column is None else label_faults(data, self.label_column, role=role)
        return unlabelled | self.faults(data, split)
