"""Where a data set is opened: a file, a folder, or a name on the hub; and how its texts and labels are read."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, ReadInstruction, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from layersim.data.splits import Integers
from layersim.errors import UserError

_BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".txt": "text",
}
# "NA" and "null" are words: only an empty cell has no value
_CSV = {"keep_default_na": False, "na_values": [""]}
# a quotation mark in a tsv file is one, as in GLUE's: read as csv, an odd one would swallow the rows up to the next
_READING: dict[str, dict[str, Any]] = {".csv": _CSV, ".tsv": _CSV | {"sep": "\t", "quoting": csv.QUOTE_NONE}}

SampleBy = Literal["line", "paragraph", "document"]


def open_split(path: str, split: str, *, name: str | None, option: str, sample_by: SampleBy = "line") -> Dataset:
    """One split of a data set.

    Args:
        path: a file (parquet, arrow, csv, tsv, json, jsonl, txt: its split is "train"), a folder (one that save_to_disk
            wrote, one of such files named after their splits, or one of images), or a name on the hub. What exists
            locally wins. A csv file's cells may be quoted, a tsv file's are taken as they stand.
        split: its name; wherever `datasets` itself reads the source, also a slice such as "train[:1000]".
        name: which configuration of the data set, where it has several.
        option: the option that named the split, for errors.
        sample_by: what a row of a txt file is; a paragraph ends with an empty line.

    Raises:
        UserError: nothing there, no such split, or the hub is out of reach.
    """
    location = Path(path).expanduser()
    if not location.exists() and (path.startswith((".", "/", "~")) or location.suffix in _BUILDERS):
        raise UserError(f"there is no file or folder {path}: change --data.path")
    if (location / "state.json").is_file() or (location / "dataset_dict.json").is_file():
        return _from_disk(location, split, option)
    if location.is_file() and location.suffix not in _BUILDERS:
        raise UserError(f"expected a folder or a file of {', '.join(_BUILDERS)}, got {path}: change --data.path")
    suffix = location.suffix if location.is_file() else _most_common_suffix(location)
    reading = {"sample_by": sample_by} if suffix == ".txt" else _READING.get(suffix, {})
    if sample_by != "line" and suffix != ".txt":
        raise UserError(f"sample_by={sample_by} is for txt files, which {path} is none of: leave --data.sample_by out")
    try:
        if location.is_file():
            builder, files = _BUILDERS[suffix], {"train": str(location)}
            return load_dataset(builder, name, data_files=files, split=split, **reading)
        return load_dataset(str(location) if location.exists() else path, name, split=split, **reading)
    except ValueError as error:  # no such split or configuration; the message lists those there are
        raise UserError(f"{path} has no split {split}: {error} Change --data.{option} or --data.name") from error
    except (OSError, DatasetsError) as error:
        if location.exists():
            raise UserError(f"{path} cannot be read as a data set: {error} Change --data.path") from error
        raise UserError(
            f"{path} is no file or folder here, and the hub did not give it: {error} "
            f"Without a network, set --data.path to a local folder or file"
        ) from error


def whence(data: Dataset, split: str) -> tuple[str, int]:
    """Of what `open_split` opened by this name: the split that its rows are of, and which of those comes first.

    The rows of several splits ("train[:90%]+extra") are of none of them, and keep their name.
    """
    if "[" not in split:
        return split, 0
    slices = ReadInstruction.from_spec(split).to_absolute(
        {name: info.num_examples for name, info in data.info.splits.items()}
    )
    return (slices[0].splitname, slices[0].from_) if len(slices) == 1 else (split, 0)


def _most_common_suffix(folder: Path) -> str:
    """Of the files below a folder, all but descriptions of images: by it `datasets` chooses, too; empty without any."""
    found = Counter(path.suffix for path in folder.rglob("*.*") if path.stem != "metadata")
    return max(found, key=lambda suffix: found[suffix], default="")


def _from_disk(location: Path, split: str, option: str) -> Dataset:
    stored = load_from_disk(str(location))
    splits = stored if isinstance(stored, DatasetDict) else {"train": stored}
    if split not in splits:
        raise UserError(f"{location} has no split {split}, only {', '.join(splits)}: change --data.{option}")
    return splits[split]


def need_column(data: Dataset, column: str, *, option: str) -> None:
    """Raises a UserError that lists the columns there are, unless the data has this one."""
    if column not in data.column_names:
        raise UserError(
            f"there is no column {column}, the data has {', '.join(data.column_names)}: change --data.{option}"
        )


def read_texts(data: Dataset, column: str, *, option: str) -> pa.ChunkedArray:
    """A column of texts (N,), read from disk as it is needed; rows without a text are null.

    Raises:
        UserError: no such column, or one that holds something else.
    """
    need_column(data, column, option=option)
    texts = data.select_columns([column]).with_format("arrow")[:][column]
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise UserError(f"texts must be strings, but column {column} holds {texts.type}: change --data.{option}")
    return texts


def read_labels(data: Dataset, column: str, *, names: list[str] | None) -> tuple[Integers, list[str] | None]:
    """The labels (N,) as integers, and the names of the classes where they are known; no other column is touched.

    Integers stay as they are; strings are numbered in sorted order, or in the order of `names`, the classes of the
    training data, where these are given.

    Raises:
        UserError: no such column; neither integers nor strings; a value missing; a class that training does not know.
    """
    need_column(data, column, option="label_column")
    feature = data.features[column]
    values = data.select_columns([column]).with_format("arrow")[:][column]
    if values.null_count:
        raise UserError(f"column {column} has {values.null_count} rows without a label: remove them from the data")
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return _number(values.to_pylist(), names)
    if not pa.types.is_integer(values.type):
        raise UserError(
            f"labels must be integers or strings, but column {column} holds {values.type}: change --data.label_column"
        )
    own: list[str] | None = list(feature.names) if isinstance(feature, ClassLabel) else None
    if names is not None and own != names:
        raise UserError(f"the classes are {names} in training, but {own} in another split: name them alike")
    return np.asarray(values.to_numpy(), dtype=np.int64), own


def _number(labels: list[Any], names: list[str] | None) -> tuple[Integers, list[str]]:
    known = sorted(set(labels)) if names is None else names
    unknown = sorted(set(labels) - set(known))
    if unknown:
        raise UserError(f"the classes are {', '.join(known)} in training, but another split has {', '.join(unknown)}")
    number = {name: position for position, name in enumerate(known)}
    return np.asarray([number[label] for label in labels], dtype=np.int64), known
