"""How the texts and labels of an opened data set are read."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Value

from layersim.data.bad_samples import NO_TEXT, SKIP, Faults, text_faults
from layersim.data.splits import Integers
from layersim.errors import UserError, as_user_error

NO_LABEL = -1
"""Marks samples whose label is not known, or kept secret, as in GLUE's and ImageNet's test data."""


@dataclass(frozen=True)
class Labels:
    """The labels of one split."""

    rows: Integers
    """(N,) which rows of it they are of."""
    values: Integers | None
    """(N,) integers; None where no sample has a label. −1 marks a sample without one, in the predict split alone."""
    names: list[str] | None = None
    """The classes in the order of their numbers, where they have names."""
    note: str = ""
    """What the user should know of them."""


def need_column(names: Collection[str], column: str, *, option: str) -> None:
    """Raises a UserError that lists the columns there are, unless the data has this one."""
    if column not in names:
        folders = option == "label_column" and [*names] == ["image"]
        why = " (of a folder of images the labels are the names of two folders or more in it)" if folders else ""
        raise UserError(f"there is no column {column}, the data has {', '.join(names)}{why}: change --data.{option}")


def read_texts(data: Dataset, column: str, *, option: str) -> pa.ChunkedArray:
    """A column of texts (N,), read from disk as it is needed; rows without a text are null, and what is no UTF-8 is
    `text_faults`' to find."""
    need_column(data.column_names, column, option=option)
    texts = column_values(data, column)
    if not _are_strings(texts):
        raise UserError(f"texts must be strings, but column {column} holds {texts.type}: change --data.{option}")
    feature = data.features[column]
    if not isinstance(feature, Value):  # texts and numbers mixed, which `datasets` keeps as JSON
        raise UserError(f"texts must be strings, but column {column} mixes types ({feature}): change --data.{option}")
    return texts


def label_faults(data: Dataset, column: str, *, role: str) -> Faults:
    """The rows that have no label, which the predict split may lack, or one that is no text."""
    if role == "predict" and column not in data.column_names:
        return {}
    need_column(data.column_names, column, option="label_column")
    values = column_values(data, column)
    faults = text_faults(values) if _are_strings(values) else {}
    if role == "predict":
        return {row: fault for row, fault in faults.items() if fault != NO_TEXT}
    absent = np.flatnonzero(pc.is_null(values, nan_is_null=True).to_numpy())
    return faults | dict.fromkeys(absent.tolist(), "no label")


def read_labels(
    data: Dataset, column: str | None, rows: Integers, *, role: str, names: list[str] | None = None
) -> Labels:
    """The labels of these rows (N,) as integers, and the names of the classes where they are known; no other column is
    touched.

    Integers stay as they are, and truth values and whole floats become integers; strings are numbered in sorted order,
    or in the order of `names`, the classes of the training data, where role is not "train". The predict split may be
    without: without the column, or with −1 or null in some rows or in all, or with no string that training knows. Where
    the column is None, nothing has a label.
    """
    if column is None or (role == "predict" and column not in data.column_names):
        return Labels(rows, None, note="without labels")
    need_column(data.column_names, column, option="label_column")
    column_of = data.features[column]
    values = column_values(data, column).take(pa.array(rows))
    if _are_strings(values):
        check_texts(values, column, rows, option="label_column")
    if values.null_count and role != "predict":
        raise UserError(
            f"column {column} has {values.null_count} rows without a label: remove them from the data, {SKIP}"
        )
    own: list[str] | None = list(column_of.names) if isinstance(column_of, ClassLabel) else None
    note = ""
    if _are_strings(values):
        numbers, own = _number(values.to_pylist(), names, role)
    else:
        numbers, note = _integers(values, column)
    hidden = int((numbers == NO_LABEL).sum()) if role == "predict" else 0
    if hidden == len(numbers):
        return Labels(rows, None, note="without labels")
    if role != "train" and own != names:
        raise UserError(f"the classes are {names} in training, but {own} in another split: name them alike")
    return Labels(rows, numbers, own, ", ".join(filter(None, [note, f"{hidden} without a label" if hidden else ""])))


def streamed_label(value: Any) -> int:
    """The label of a row of a stream, of whose other rows nothing is known: no text that would have to be numbered."""
    if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise UserError(f"labels of a stream must be integers, but a row has {value!r}: change --data.label_column")


def check_texts(texts: pa.ChunkedArray, column: str, rows: Integers, *, option: str) -> None:
    """Raises a UserError that names the first of these rows (N,) of a column whose bytes are no text; those without any
    may pass."""
    for row, fault in text_faults(texts).items():
        if fault != NO_TEXT:
            raise UserError(f"column {column}, row {rows[row]}: {fault}. Change --data.{option}, {SKIP}")


def column_values(data: Dataset, column: str) -> pa.ChunkedArray:
    """A column (N,) as arrow has it: of images not decoded."""
    values = data.select_columns([column]).with_format("arrow")[:][column]
    return values.cast(pa.large_string()) if pa.types.is_string_view(values.type) else values


def _are_strings(values: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_string(values.type) or pa.types.is_large_string(values.type))


def _integers(values: pa.ChunkedArray, column: str) -> tuple[Integers, str]:
    """Numbers as integers (N,), null as −1; and a note where they were of another type."""
    if pa.types.is_null(values.type):
        return np.full(len(values), NO_LABEL, np.int64), ""
    is_bool, is_float = pa.types.is_boolean(values.type), pa.types.is_floating(values.type)
    if not (is_bool or is_float or pa.types.is_integer(values.type)):
        raise UserError(
            f"labels must be integers or strings, but column {column} holds {values.type}: change --data.label_column"
        )
    with as_user_error(f"column {column} holds no labels", "Change --data.label_column"):
        found = values.cast(pa.float64() if is_float else pa.int64()).fill_null(NO_LABEL).to_numpy()
    odd = found[~(np.abs(found) < 2**53) | (found != np.trunc(found))] if is_float else []
    if len(odd):
        raise UserError(
            f"labels must be integers or strings, but column {column} holds {values.type} such as {odd[0]}: "
            f"change --data.label_column"
        )
    note = "labels true and false taken as 1 and 0" if is_bool else "labels of whole floats taken as integers"
    return np.asarray(found, dtype=np.int64), note if is_bool or is_float else ""


def _number(labels: list[Any], names: list[str] | None, role: str) -> tuple[Integers, list[str]]:
    there = set(labels) - {None}
    known = sorted(there) if role == "train" else names or []
    unknown = sorted(there - set(known))
    if unknown and not (role == "predict" and len(unknown) == len(there)):
        raise UserError(
            f"the classes are {', '.join(known) or 'integers'} in training, but another split has "
            f"{', '.join(unknown)}: change --data.{role}_split"
        )
    number = {name: position for position, name in enumerate(known)}
    return np.asarray([number.get(label, NO_LABEL) for label in labels], dtype=np.int64), known
