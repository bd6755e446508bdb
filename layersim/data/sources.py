"""Where a data set is opened: a file, a folder, or a name on the hub."""

import csv
import glob
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from datasets import (
    Dataset,
    DatasetBuilder,
    DatasetDict,
    IterableDataset,
    ReadInstruction,
    load_dataset_builder,
    load_from_disk,
    packaged_modules,
)

from layersim.data.account import folder, not_read
from layersim.data.bad_samples import MARKED, first_fault
from layersim.data.named_folders import is_metadata, other_folders_than_training, refuse_strays, refuse_words_for_splits
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

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4")  # which `datasets` unpacks

SampleBy = Literal["line", "paragraph", "document"]


class Source:
    """A data set, opened once for all its splits.

    Args:
        path: a file (parquet, arrow, csv, tsv, json, jsonl, txt, those of text compressed too, as csv.gz: its split is
            "train"), a folder (one that save_to_disk wrote, one of such files named after their splits, or one of
            images), or a name on the hub. What exists locally wins over the hub, and over `datasets`' names of formats.
            A csv file's cells may be quoted, a tsv file's are taken as they stand.
        name: which configuration of the data set, where it has several.
        sample_by: what a row of a txt file is; a paragraph ends with an empty line.
        marks: whether bytes that are no UTF-8 are marked for `text_faults` to find their rows, and no error.

    Raises:
        UserError: nothing there, what cannot be read, or the hub is out of reach.
    """

    def __init__(
        self, path: str, *, name: str | None = None, sample_by: SampleBy = "line", marks: bool = False
    ) -> None:
        self.path = path
        self.name = name
        self.marks = marks
        with as_user_error(f"{path} cannot be opened", "Change --data.path"):
            self.location = Path(path).expanduser().absolute()  # as which nothing is taken for the name of a format
            self.is_local = bool(path) and self.location.exists()
            saved = any((self.location / name).is_file() for name in ("state.json", "dataset_dict.json"))
        self.files: dict[str, list[str]] = {}
        self.used: set[str] = set()
        self.stored: DatasetDict | None = None
        self.kind, self.by_folder = "", False
        self.unlisted = 0
        self._builders: dict[frozenset[str] | None, DatasetBuilder] = {}
        if not self.is_local:
            _refuse_local(path)
        if name is not None and (saved or self.location.is_file()):
            raise UserError(f"{path} has no configurations to choose from, got {name}: leave --data.name out")
        if saved:
            with self._reading([*map(str, sorted(self.location.rglob("state.json")))]):
                stored = load_from_disk(str(self.location))
            self.stored = stored if isinstance(stored, DatasetDict) else DatasetDict(train=stored)
        else:
            self._find(sample_by)

    @property
    def splits(self) -> list[str]:
        """The splits that there are; none where only the hub knows."""
        return [*(self.files if self.stored is None else self.stored)]

    def split(self, split: str, *, option: str) -> Dataset:
        """The rows of one split, at least one. Of a folder only the files of the splits that are asked for are read.

        Args:
            split: its name, or that of a folder in the one that was opened; wherever `datasets` itself reads the
                source, also a slice such as "train[:1000]".
            option: the option that named the split, for errors.
        """
        asked = {part.partition("[")[0].strip() for part in split.split("+")}
        there = self.splits
        if self.is_local and split not in there and os.path.isdir(self.location / split):
            return self._folder(split, option)
        if self.stored is not None:
            asked = {split}  # which knows no slices
        elif "all" in asked:
            asked = set(there)
        if self.is_local and not asked <= set(there):
            raise UserError(f"{self.path} has no split {split}, only {', '.join(there)}: change --data.{option}")
        self.used |= asked
        empty = UserError(f"{self.path} has no rows in its split {split}: change --data.path or --data.{option}")
        if self.stored is not None:
            if not len(self.stored[split]):
                raise empty
            return self.stored[split]
        builder = self._opened(frozenset(asked))
        with self._reading(self._paths(asked)):
            builder.download_and_prepare()
        if (info := (builder.info.splits or {}).get(split)) and info.num_examples == 0:
            raise empty
        with as_user_error(f"{self.path} has no split {split}", f"Change --data.{option} or --data.name"):
            data = builder.as_dataset(split=split)
        self.check_columns(data.column_names)
        if builder.name == "json" and not self.marks:  # which has not looked at the bytes of strings
            with self._reading(self._paths(asked)):
                data.with_format("arrow")[:].validate(full=True)
        if builder.name == "imagefolder" and option != "predict_split" and "label" not in data.features:
            refuse_strays(self._paths(asked), option)
        if builder.name == "imagefolder" and any(map(is_metadata, paths := self._paths(asked))):
            there = sum((builder.info.splits or {})[name].num_examples for name in asked)
            self.unlisted += sum(not is_metadata(file) for file in paths) - there
        if self.by_folder:
            named = data.features["label"].int2str(data["label"][:])
            data = data.remove_columns("label").add_column("label", named)
        return data

    def check_columns(self, names: Sequence[str]) -> None:
        """Raises a UserError where the columns of a csv or tsv file are not those that its writer meant."""
        if self.stored is not None or self.kind != "csv" or not self.is_local:
            return
        columns = [name for name in names if not name.startswith("__index_level_")]
        if len(columns) == 1 and (marks := {*columns[0]} & {*",;|\t"}):
            raise UserError(
                f"{self.path} has a single column, {columns[0]!r}, so that {marks.pop()!r} seems to divide "
                "its cells: write it with commas as csv, or with tabs as tsv, and set --data.path to that"
            )
        if len(columns) == len(names):
            return
        with open(self._paths(self.files)[0], "rb") as file:
            named = b"__index_level_" in file.readline()  # as pandas writes it
        if not named:
            raise UserError(
                f"the rows of {self.path} have more cells than its first line names ({', '.join(columns)}): where a "
                "cell of a csv file holds a comma, put it into quotation marks; a cell of a tsv file holds no tab"
            )

    def stream(self, split: str) -> IterableDataset:
        """The rows of one whole split to train on, as they come, none of them written anywhere."""
        there = self.splits
        if "[" in split or (self.is_local and split not in there):
            raise UserError(
                f"a stream is of a whole split of {self.path}, which has {', '.join(there) or 'other names'}, but got "
                f"{split}: change --data.train_split, or leave --data.streaming out"
            )
        if self.by_folder:
            raise UserError(
                f"the folders of {self.path} name other classes in another split than in training, which a stream "
                "cannot tell apart: name them alike, or leave --data.streaming out"
            )
        self.used.add(split)
        if self.stored is not None:
            data = self.stored[split]
            with self._reading():
                return data.to_iterable_dataset(num_shards=min(len(data), max(1, len(data.cache_files))))
        with self._reading(self._paths([split])):
            return self._opened(frozenset([split])).as_streaming_dataset(split=split)

    def told(self) -> str:
        """What was opened, for the user: which files, and where."""
        if self.stored is not None:
            others = not_read(f"split {name}" for name in self.stored if name not in self.used)
            return f"a data set saved to {self.location}{others}"
        if not self.is_local:
            return f"{self.path}{f' ({self.name})' if self.name else ''} on the hub"
        if self.location.is_file():
            return f"the file {self.location}"
        unlisted = f"{self.unlisted} images without a row in metadata" if self.unlisted > 0 else ""
        return folder(self.location, self.files, self.used, unlisted)

    def _folder(self, split: str, option: str) -> Dataset:
        """The rows of a folder in this one that `datasets` takes for no split, or for one of another name ("val")."""
        own = Source(str(self.location / split), marks=self.marks)
        paths = own._paths(own.files)
        for name, files in self.files.items():
            if set(paths) == set(files):
                return self.split(name, option=option)
            if not set(paths).isdisjoint(files):
                raise UserError(
                    f"the folder {split} in {self.path} is a part of the split {name}, and no split: change --data."
                    f"{option}, or put the rest into a folder {name}"
                )
        self.files[split] = paths
        self.used.add(split)
        return own.split("all", option=option)

    def _find(self, sample_by: SampleBy) -> None:
        """Sets which files belong to which split, and how they are read."""
        if self.location.is_file():
            suffix = _form(self.location)
            if suffix not in _BUILDERS:
                raise UserError(
                    f"expected a folder or a file of {', '.join(_BUILDERS)}, got {self.path}: change --data.path"
                )
            self.opened = self.kind = _BUILDERS[suffix]
            self.files = {"train": [str(self.location)]}
            self.together = False
        else:
            self.opened = str(self.location) if self.is_local else self.path
            if self.is_local and (real := str(self.location.resolve())) != glob.escape(real):
                raise UserError(f"{self.path} has * ? or [ in its path, which reads other folders: rename it")
            builder = self._builder()
            self.kind = kind = builder.name
            self.files = {str(split): files for split, files in (builder.config.data_files or {}).items()}
            # read by itself, a split need not have the columns of the others; folders of images name classes together,
            # and a description in the folder is of all splits
            self.together = not self.is_local or kind.endswith("folder") or builder.info.features is not None
            if self.is_local:
                refuse_words_for_splits(self.location.resolve(), self.files, images=kind.endswith("folder"))
        self.by_folder = self.kind == "imagefolder" and other_folders_than_training(self.files)
        self.options = self._options(self.kind, sample_by)
        if self.together and not self.options:
            self._builders[None] = builder

    def _opened(self, names: frozenset[str]) -> DatasetBuilder:
        """The builder of these splits."""
        key = None if self.together else names
        if key not in self._builders:
            if not self.together:
                self.options["data_files"] = {
                    split: [*map(glob.escape, files)] for split, files in self.files.items() if split in names
                }
            self._builders[key] = self._builder(**self.options)
        return self._builders[key]

    def _paths(self, splits: Iterable[str]) -> list[str]:
        return [file for split in splits for file in self.files.get(split, [])]

    def _builder(self, **options: Any) -> DatasetBuilder:
        with self._reading():
            return load_dataset_builder(self.opened, self.name, **options)

    def _reading(self, files: Sequence[str] = ()) -> AbstractContextManager[None]:
        """The guard of whatever `datasets` does with the source: tells what is wrong with which of these files."""
        for talker in ("datasets.packaged_modules", "huggingface_hub.repocard"):
            logging.getLogger(talker).setLevel(logging.CRITICAL)  # what they log as errors they raise, too
        what, remedy = f"{self.path} cannot be read as a data set", "Change --data.path"
        if not self.is_local:
            what = f"{self.path} is no file or folder here, and the hub did not give it"
            remedy = "Without a network, set --data.path to a local folder or file"
        remedy += "" if self.name is None else ", or change --data.name"
        return as_user_error(what, remedy, why=lambda error: first_fault(files) or root_reason(error))

    def _options(self, kind: str, sample_by: SampleBy) -> dict[str, Any]:
        """The options of `datasets`' builder by which these files are read as they should be."""
        if kind != "text" and sample_by != "line":
            raise UserError(
                f"sample_by={sample_by} is for txt files, which {self.path} is none of: leave --data.sample_by out"
            )
        marks = {"encoding_errors": MARKED} if self.marks and self.is_local else {}
        if kind == "text":
            return {"encoding": "utf-8-sig"} | marks | ({} if sample_by == "line" else {"sample_by": sample_by})
        if kind == "json":
            return marks
        if kind != "csv" or not self.is_local:
            return {"drop_labels": False} if self.by_folder else {}
        suffixes = {_form(Path(file)) for file in self._paths(self.files)}
        if len(suffixes) > 1:
            raise UserError(
                f"{self.path} holds both csv and tsv files, which are not read alike: set --data.path to one of them"
            )
        return _READING.get("".join(suffixes), {}) | marks


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


def _form(file: Path) -> str:
    """The suffix that tells how a file is read, that of its compression aside."""
    suffix = file.suffix.lower()
    return Path(file.stem).suffix.lower() if suffix in _COMPRESSED else suffix


def _refuse_local(path: str) -> None:
    """Raises a UserError for what is no name on the hub: a path where nothing is, or the name of a format."""
    if not path or path.startswith((".", "/", "~")) or _form(Path(path)) in _BUILDERS:
        raise UserError(f"there is no file or folder {path}: change --data.path")
    if (Path(*packaged_modules.__path__) / path).is_dir():
        raise UserError(
            f"{path} is the name of a format, and no file or folder of that name is here: set --data.path to the file "
            f"or folder that holds the data"
        )
