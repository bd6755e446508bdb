"""What data of a `Source` share: which splits are read, what is held out, left out, and shared between splits."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from datasets import Dataset, Image

from layersim.data.bad_samples import Faults, OnBadSample, left_over
from layersim.data.base import SplitDataModule, at_least
from layersim.data.columns import need_column
from layersim.data.duplicates import Contents, tell_duplicates
from layersim.data.sources import SampleBy, Source, whence
from layersim.data.splits import Integers
from layersim.data.streams import Stream, hold_out_rows
from layersim.errors import UserError, as_user_error, check_choice


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

    Raises:
        UserError: an option out of its range.
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
        if not 0 < val_fraction < 1:
            raise UserError(f"expected 0 < val_fraction < 1, got {val_fraction}: change --data.val_fraction")
        self.path = path
        self.configuration = name
        self.train_split = train_split
        self.other_splits = {"val": val_split, "test": test_split}
        self.val_fraction = val_fraction
        self.on_bad_sample: OnBadSample = on_bad_sample
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

    @property
    def skips(self) -> bool:
        """Whether samples that cannot be read are left out."""
        return self.on_bad_sample == "skip"

    def source(self, sample_by: SampleBy = "line") -> Source:
        return Source(self.path, name=self.configuration, sample_by=sample_by, marks=self.skips)

    def streamed(
        self, source: Source, columns: Mapping[str, str], also: str | None = None
    ) -> tuple[Stream, Dataset | None]:
        """The stream to train on, which `adapt` tells how samples are made of rows, and what it holds out to validate.

        Args:
            source: the opened data.
            columns: those that the backbone reads, by the option that named each.
            also: the column of labels, where there is one.
        """
        name = f"the stream {self.train_split} of {self.path}"
        rows = source.stream(self.train_split, option="train_split")
        with as_user_error(f"{name} cannot be read", "Change --data.path"):
            there = rows.column_names or [*next(iter(rows.take(1)), {})]  # of some formats a row tells
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

    def compare(self, samples: Mapping[str, Contents], unit: str = "sample") -> None:
        """Says what the splits share, unless it was asked not to."""
        tell_duplicates(samples, unit, wanted=self.find_duplicates)
