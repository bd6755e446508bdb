"""`layers.jsonl`: what was measured layer by layer, one line for each validation epoch.

The file that every figure, table and comparison of a run is drawn from. Letters: L layers.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, Self

import numpy as np

from layersim.errors import UserError, check_choice
from layersim.report.quantity import Quantity
from layersim.report.reading import DamagedFile, check_plain, damaging, read_json, short
from layersim.writing import named

RECORDS_FILE = "layers.jsonl"
VERSION = 1
"""Of the lines that are written here."""

Stage = Literal["validate", "test"]
Unit = Literal["samples", "tokens"]

_COUNTS = ("epoch", "step", "layers", "samples")
MOST_BYTES = 2**26
"""Of a file's end that is read; longer ones lose their oldest lines, with a warning."""
MOST_LINE = 2**24
"""Bytes of one line; fifty layers' similarities with intervals have some hundred thousand."""
_MOST_LAYERS, _MOST_QUANTITIES = 10_000, 256


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One line of `layers.jsonl`.

    Raises:
        UserError: a quantity that does not fit its axes, or a count that is none; it is named.
    """

    epoch: int
    """As the trainer counts them, from 0."""
    step: int
    """Optimizer steps taken."""
    stage: Stage
    layers: int
    """L."""
    samples: int
    """Samples measured, on all ranks together."""
    unit: Unit = "samples"
    """What a sample is; a language model's are tokens."""
    left_out: int = 0
    """Samples of the data, in all splits that were opened, that could not be read and are in none of these numbers."""
    quantities: Mapping[str, Quantity] = field(default_factory=dict)
    """What was measured, by name."""

    def __post_init__(self) -> None:
        check_choice("stage", self.stage, Stage)
        check_choice("unit", self.unit, Unit)
        for key in (*_COUNTS, "left_out"):
            count, least = getattr(self, key), int(key in ("layers", "samples"))
            if type(count) is not int or count < least:
                raise UserError(f"{key}: expected one whole number, {least} or more, got {short(count)}.")
        if self.layers > _MOST_LAYERS:
            raise UserError(f"layers: expected at most {_MOST_LAYERS:,}, got {self.layers:,}.")
        for name, quantity in self.quantities.items():
            if not isinstance(quantity, Quantity) or not isinstance(name, str):
                raise UserError(f"{name}: expected a Quantity by its name, got {short(quantity)}.")
            quantity.check(name, self.layers)

    def values(self, name: str) -> Any:
        """The values of this quantity, or None where it was not measured."""
        return self.quantities[name].values if name in self.quantities else None

    @property
    def worth(self) -> str | None:
        """The quantity that runs are told apart by: the first curve by layer that is better high or low."""
        return next((name for name, each in self.quantities.items() if each.is_curve and each.better), None)

    @property
    def matrices(self) -> dict[str, Quantity]:
        """What has a value for every pair of layers."""
        return {name: quantity for name, quantity in self.quantities.items() if quantity.is_matrix}

    @property
    def matrix(self) -> str | None:
        """The first of them."""
        return next(iter(self.matrices), None)

    def to_line(self) -> str:
        """The record as one line of JSON, without the newline. JSON has neither NaN nor infinity: both become null.

        Raises:
            UserError: what `from_line` would refuse, such as numbers beyond 64 bits, or many; the quantity is named.
        """
        line = {"version": VERSION} | vars(self)
        line["quantities"] = told = {name: quantity.to_json() for name, quantity in self.quantities.items()}
        for name, each in told.items():
            try:
                check_plain({name: each}, most=sys.maxsize)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
        if len(told) > _MOST_QUANTITIES:
            raise UserError(f"quantities: expected at most {_MOST_QUANTITIES}, got {len(told)}.")
        if not self.left_out:
            del line["left_out"]
        if len(text := json.dumps(line, allow_nan=False)) > MOST_LINE:
            largest = max(self.quantities, key=lambda name: np.size(self.quantities[name].values))
            raise UserError(
                f"{largest} has {np.size(self.quantities[largest].values):,} values: a record has {len(text):,} bytes "
                f"with it, and may have {MOST_LINE:,}. Give fewer, such as a mean or a sample of them."
            )
        return text

    @classmethod
    def from_line(cls, line: str | bytes) -> Self:
        """What `to_line` wrote; null becomes NaN. What a newer version added is left out, and a UserWarning names it.

        Raises:
            UserError: the line is no JSON object, a key is missing, or a value does not fit (the key is named).
        """
        if len(line) > MOST_LINE:
            raise UserError(f"expected at most {MOST_LINE:,} bytes, got {len(line):,}.")
        read = read_json(line)
        required = ("version", *_COUNTS, "stage", "unit", "quantities")
        if absent := [key for key in required if key not in read]:
            raise UserError(f"expected the keys {', '.join(required)}; {', '.join(absent)} absent.")
        if not isinstance(read["quantities"], dict):
            raise UserError(f"quantities: expected a JSON object, got {short(read['quantities'])}.")
        if len(read["quantities"]) > _MOST_QUANTITIES:
            raise UserError(f"quantities: expected at most {_MOST_QUANTITIES}, got {len(read['quantities'])}.")
        unknown = sorted(read.keys() - {*required, "left_out"})
        quantities = {}
        for name, entry in read["quantities"].items():
            quantities[name], others = Quantity.from_json(name, entry)
            unknown += [f"{name}.{other}" for other in others]
        if unknown:
            told = f"a record of version {short(read['version'])}, read by version {VERSION}"
            names = shorten(", ".join(unknown), 400, placeholder=" …")
            warnings.warn(f"{told}: {names} is not known here and left out.", UserWarning, stacklevel=2)
        head = {key: read[key] for key in (*_COUNTS, "stage", "unit", "left_out") if key in read}
        return cls(**head, quantities=quantities)


def shared_name(records: Iterable[LayerRecord], kind: Literal["worth", "matrix"]) -> str:
    """The first record's quantity of this kind that all have; where there is none, the first that one has, else ""."""
    every = list(records)
    named = [name for record in every if (name := getattr(record, kind))]
    common = [name for name in named if all(name in record.quantities for record in every)]
    return next(iter([*common, *named]), "")


def append_record(path: Path, record: LayerRecord) -> None:
    """Adds one line to the file, making file and folder where there are none.

    The line goes out in one write and is on the disk when this returns: an interrupted run loses at most the line it
    was writing. Such a cut line, found at the end, is taken off first, with a warning.

    Raises:
        OSError: the line cannot be written; the file is what it was before.
    """
    line = record.to_line().encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with named(path), path.open("a+b", buffering=0) as file:  # a buffer would be written again after an error
        file.seek(0)
        if end := _after_last_newline(file.read()):
            warnings.warn(f"{path}: the last line was cut by an interruption and is taken off.", stacklevel=2)
            file.truncate(file.tell() - len(end))
        whole = file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(whole)
            raise


def read_records(path: Path) -> list[LayerRecord]:
    """All records of the file, in the order in which they were written.

    A line counts when its newline is there: a last line without one was cut by an interruption; it is left out, with
    a warning.

    Raises:
        DamagedFile: the file cannot be read, or a line is broken; the file and the line's number are named.
    """
    if path.exists() and not path.is_file():
        raise DamagedFile(f"expected the records of a run in {path}, which is no file.")
    try:
        with path.open("rb") as file:
            if (size := path.stat().st_size) > MOST_BYTES:
                warnings.warn(f"{path} has {size:,} bytes: only the last {MOST_BYTES:,} are read.", stacklevel=2)
                file.seek(size - MOST_BYTES)
                file.readline(MOST_BYTES)  # the rest of a line
                if file.tell() >= size:
                    raise DamagedFile(f"{path}: no line begins within its last {MOST_BYTES:,} bytes.")
            content = file.read(MOST_BYTES)
    except OSError as error:
        told = f"expected the records of a run in {path}, which cannot be read: {error.strerror}."
        raise DamagedFile(told) from error
    if end := _after_last_newline(content):
        warnings.warn(f"{path}: the last line was cut by an interruption and is left out.", stacklevel=2)
    records = []
    for number, line in enumerate(content.removesuffix(end).split(b"\n")[:-1], start=1):
        with damaging(f"{path}, line {number}:"):
            records.append(LayerRecord.from_line(line))
    return records


def _after_last_newline(content: bytes) -> bytes:
    return content[content.rfind(b"\n") + 1 :]
