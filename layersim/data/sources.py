"""Where a data set is opened: a file, a folder, or a name on the hub."""

import csv
import glob
import logging
import os
from pathlib import Path
from typing import Any, Literal

from datasets import (
    Dataset,
    DatasetBuilder,
    DatasetDict,
    ReadInstruction,
    load_dataset_builder,
    load_from_disk,
    packaged_modules,
)

from layersim.data.account import folder, not_read
from layersim.data.unreadable import first_fault
from layersim.errors import UserError, as_user_error, root_reason

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


class Source:
    """A data set, opened once for all its splits.

    Args:
        path: a file (parquet, arrow, csv, tsv, json, jsonl, txt: its split is "train"), a folder (one that save_to_disk
            wrote, one of such files named after their splits, or one of images), or a name on the hub. What exists
            locally wins over the hub, and over `datasets`' names of formats. A csv file's cells may be quoted, a tsv
            file's are taken as they stand.
        name: which configuration of the data set, where it has several.
        sample_by: what a row of a txt file is; a paragraph ends with an empty line.

    Raises:
        UserError: nothing there, what cannot be read, or the hub is out of reach.
    """

    def __init__(self, path: str, *, name: str | None = None, sample_by: SampleBy = "line") -> None:
        self.path = path
        self.name = name
        self.location = Path(path).expanduser().absolute()  # as which nothing is taken for the name of a format
        self.is_local = bool(path) and self.location.exists()
        self.used: set[str] = set()
        self.files: dict[str, list[str]] = {}
        self.by_folder = False
        self.stored: DatasetDict | None = None
        if not self.is_local:
            _refuse_local(path)
        if any((self.location / name).is_file() for name in ("state.json", "dataset_dict.json")):
            with as_user_error(f"{path} cannot be read as a data set", "Change --data.path", why=root_reason):
                stored = load_from_disk(str(self.location))
            self.stored = stored if isinstance(stored, DatasetDict) else DatasetDict(train=stored)
            return
        # what it logs as an error it raises, too
        logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
        self.builder = self._file_builder(sample_by) if self.location.is_file() else self._builder(sample_by)
        every = [file for files in self.files.values() for file in files]
        with as_user_error(
            f"{path} cannot be read as a data set",
            "Change --data.path",
            why=lambda error: first_fault(every) or root_reason(error),
        ):
            self.builder.download_and_prepare()

    def split(self, split: str, *, option: str) -> Dataset:
        """The rows of one split.

        Args:
            split: its name, or that of a folder in the one that was opened; wherever `datasets` itself reads the
                source, also a slice such as "train[:1000]".
            option: the option that named the split, for errors.

        Raises:
            UserError: no such split, or one without rows.
        """
        self.used |= {part.partition("[")[0].strip() for part in split.split("+")}
        if self.stored is not None:
            if split not in self.stored:
                raise UserError(
                    f"{self.path} has no split {split}, only {', '.join(self.stored)}: change --data.{option}"
                )
            return self.stored[split]
        sizes = {name: info.num_examples for name, info in (self.builder.info.splits or {}).items()}
        if self.is_local and split not in sizes and (self.location / split).is_dir():
            own = Source(str(self.location / split))
            self.files[split] = [file for files in own.files.values() for file in files]
            return own.split("all", option=option)
        if sizes.get(split) == 0:
            raise UserError(f"{self.path} has no rows in its split {split}: change --data.path or --data.{option}")
        with as_user_error(f"{self.path} has no split {split}", f"Change --data.{option} or --data.name"):
            data = self.builder.as_dataset(split=split)
        if self.by_folder:
            named = data.features["label"].int2str(data["label"][:])
            data = data.remove_columns("label").add_column("label", named)
        return data

    def told(self) -> str:
        """What was opened, for the user: which files, and where."""
        if self.stored is not None:
            others = not_read(f"split {name}" for name in self.stored if name not in self.used)
            return f"a data set saved to {self.location}{others}"
        if not self.is_local:
            return f"{self.path}{f' ({self.name})' if self.name else ''} on the hub"
        if self.location.is_file():
            return f"the file {self.location}"
        return folder(self.location, self.files, set(self.files) if "all" in self.used else self.used)

    def _file_builder(self, sample_by: SampleBy) -> DatasetBuilder:
        suffix = self.location.suffix.lower()
        if suffix not in _BUILDERS:
            raise UserError(
                f"expected a folder or a file of {', '.join(_BUILDERS)}, got {self.path}: change --data.path"
            )
        self.files = {"train": [str(self.location)]}
        options = self._reading(_BUILDERS[suffix], sample_by)
        with as_user_error(f"{self.path} cannot be read as a data set", "Change --data.path", why=root_reason):
            files = glob.escape(str(self.location))
            return load_dataset_builder(_BUILDERS[suffix], self.name, data_files={"train": files}, **options)

    def _builder(self, sample_by: SampleBy) -> DatasetBuilder:
        if self.is_local:
            path, what, remedy = str(self.location), f"{self.path} cannot be read as a data set", "Change --data.path"
        else:
            path, what = self.path, f"{self.path} is no file or folder here, and the hub did not give it"
            remedy = "Without a network, set --data.path to a local folder or file"
        with as_user_error(what, remedy + (" (or change --data.name)" if self.name else ""), why=root_reason):
            builder = load_dataset_builder(path, self.name)
        self.files = {str(split): list(map(str, files)) for split, files in (builder.config.data_files or {}).items()}
        options = self._reading(builder.name, sample_by)
        if not options:
            return builder
        with as_user_error(what, remedy, why=root_reason):
            return load_dataset_builder(path, self.name, **options)

    def _reading(self, builder: str, sample_by: SampleBy) -> dict[str, Any]:
        """The options of `datasets`' builder by which these files are read as they should be."""
        if builder == "text":
            return {} if sample_by == "line" else {"sample_by": sample_by}
        if sample_by != "line":
            raise UserError(
                f"sample_by={sample_by} is for txt files, which {self.path} is none of: leave --data.sample_by out"
            )
        if builder == "imagefolder":
            self.by_folder = _other_folders_than_training(self.files)
            return {"drop_labels": False} if self.by_folder else {}
        if builder != "csv" or not self.is_local:
            return {}
        suffixes = {Path(file).suffix.lower() for files in self.files.values() for file in files}
        if len(suffixes) > 1:
            raise UserError(
                f"{self.path} holds both csv and tsv files, which are not read alike: set --data.path to one of them"
            )
        return _READING.get("".join(suffixes), {})


def whence(data: Dataset, split: str) -> tuple[str, int]:
    """Of what `Source.split` opened by this name: the split that its rows are of, and which of those comes first.

    The rows of several splits ("train[:90%]+extra") are of none of them, and keep their name.
    """
    if "[" not in split:
        return split, 0
    slices = ReadInstruction.from_spec(split).to_absolute(
        {name: info.num_examples for name, info in data.info.splits.items()}
    )
    return (slices[0].splitname, slices[0].from_) if len(slices) == 1 else (split, 0)


def _refuse_local(path: str) -> None:
    """Raises a UserError for what is no name on the hub: a path where nothing is, or the name of a format."""
    if not path or path.startswith((".", "/", "~")) or Path(path).suffix.lower() in _BUILDERS:
        raise UserError(f"there is no file or folder {path}: change --data.path")
    if (Path(*packaged_modules.__path__) / path).is_dir():
        raise UserError(
            f"{path} is the name of a format, and no file or folder of that name is here: set --data.path to the file "
            f"or folder that holds the data"
        )


def _other_folders_than_training(files: dict[str, list[str]]) -> bool:
    """Whether training's images lie in folders named after their classes, and some of another split's do not.

    `datasets` would then drop the labels of all, or take the folders of the others for further classes.
    """
    if any(os.path.basename(file).startswith("metadata.") for paths in files.values() for file in paths):
        return False
    training, *others = ([os.path.dirname(file) for file in paths] for paths in files.values())
    classes = {os.path.basename(place) for place in training}
    labelled = len(classes) > 1 and len({place.count(os.sep) for place in training}) == 1
    return labelled and any(os.path.basename(place) not in classes for places in others for place in places)
