"""What `layersim look` makes of data as people have them: the class that reads them, their columns and their split."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Image, Value

from layersim.backbones import Backbone
from layersim.commands.parser import Parser
from layersim.data import SplitDataModule
from layersim.data.columns import label_faults, read_labels
from layersim.data.sources import Source
from layersim.data.tokenizers import ByteTokenizer
from layersim.errors import UserError, user_path
from layersim.runs.models import LAST, read_source

Kind = Literal["images", "texts", "tokens"]
"""What a model reads; tokens, where each is to be predicted."""
_READ_BY: dict[Kind, str] = {"images": "Images", "texts": "Text", "tokens": "LanguageModeling"}
SHIPPED: dict[str, dict[str, Any]] = {
    "digits": {"class_path": "layersim.data.Digits", "init_args": {}},
    "docstrings": {
        "class_path": "layersim.data.Docstrings",
        "init_args": {"per_package": 64, "val_fraction": 0.9, "max_train_samples": 1},
    },
    "stdlib_code": {"class_path": "layersim.data.StdlibCode", "init_args": {"max_bytes": 2**20, "val_fraction": 0.5}},
}
"""Data that every installation has, so many of them as are looked at soon."""
_OWN: dict[Kind, tuple[str, str]] = {
    "images": (
        "digits",
        "These are 8 × 8 pixels made large: they show how one layer goes over into the next, not what any knows of "
        "your images.",
    ),
    "texts": (
        "docstrings",
        "These are docstrings of Python packages: they show how one layer goes over into the next, not what any knows "
        "of your texts.",
    ),
    "tokens": (
        "stdlib_code",
        "This is Python's standard library: a model that was not trained on code is worse here than on your texts.",
    ),
}
_BLOCK = 256  # tokens
_TEXTS = ("text", "sentence", "content", "document", "review", "body", "prompt")
_LABELS = ("label", "labels", "class", "target", "category", "sentiment", "y")
_SPLITS = ("validation", "test", "train")
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class Guess:
    """Data, and how they shall be read."""

    section: dict[str, Any]
    """As a recipe's section `data`."""
    told: list[str]
    """What was guessed, each with the flag that changes it."""
    stage: Literal["val", "test"] = "val"
    """Which of the data's splits is read."""
    note: str = ""
    """What these data can tell, where nobody chose them."""
    classes: int | None = None
    """C of all rows, where they were seen; a sample of them may lack some."""
    names: list[str] | None = None
    """Of the classes."""
    rows: int | None = None
    """Of the split, where a row is a sample."""


def kind_of(backbone: Backbone) -> Kind:
    """What the model reads."""
    return "tokens" if backbone.reads_tokens else "texts" if backbone.input_size is None else "images"


def opened(given: str) -> Source | dict[str, Any]:
    """What is typed for data, looked up: a recipe's section `data`, or a data set. A name of `SHIPPED`; a recipe,
    checkpoint or run, for its data; a file, a folder, or a name on the hub."""
    path = user_path(given)
    name = given.lower().replace("-", "_").replace("stdlibcode", "stdlib_code")
    if name in SHIPPED and not path.exists():
        return SHIPPED[name]
    if path.suffix in (".yaml", ".yml", ".ckpt") or (path / LAST).exists():
        section = read_source(given).data
        if section is None:
            raise UserError(f"{given} tells no data. Change --data.")
        return section
    if given in _READ_BY.values():
        raise UserError(
            f"Expected a file, a folder or a name, but got the class {given}. Set --data to the path itself."
        )
    return Source(given)


def guess(
    data: Source | dict[str, Any] | None,
    backbone: Backbone,
    *,
    split: str | None = None,
    max_samples: int = 2048,
    options: dict[str, Any] = {},  # noqa: B006 - read only
) -> Guess:
    """How these data are read for this model.

    Args:
        data: what `opened` gave; None: data that every installation has.
        backbone: the model.
        split: which is asked for; None: the first there is of validation, test and training.
        max_samples: samples, or tokens to predict, at most.
        options: of the data's class, which are no guesses.
    """
    kind = kind_of(backbone)
    if not isinstance(data, Source):
        return _of_a_class(data, kind, backbone, split, max_samples, options)
    _check_options(_READ_BY[kind], {"path": data.path} | options)
    split = split or options.get("val_split") or _first(data.splits, _SPLITS) or "".join(data.splits[:1]) or "train"
    rows = data.split(split, option="val_split")
    told = [] if len(data.splits) < 2 else [f"split {split} of {', '.join(data.splits)} (--split)"]
    # nothing is trained, so that a single sample does, and that it is measured too does no harm
    init = {"path": data.path, "train_split": split, "val_split": split, "find_duplicates": False}
    label, label_told, classes, names = (None, "", None, None) if kind == "tokens" else _labels(rows, options)
    what, others = ("image", 1) if kind == "images" else ("text", 0)
    column = _column(rows, data.path, what, options, label)
    init |= {f"{what}_column": column} | ({} if kind == "images" else {"on_bad_sample": "skip"})
    if len(rows.column_names) > 1 + others:
        told.append(f"{what}s in {column} (--data.{what}_column)")
    if kind != "tokens":
        init |= {"label_column": label, "max_train_samples": 1}
        told.append(label_told)
    else:
        init |= {} if data.stored is not None else {"train_split": f"{split}[:1]"}  # what is stored knows no slices
        init |= {"block_size": min(_BLOCK, getattr(backbone, "max_positions", None) or _BLOCK)}
        if _reads_bytes(backbone) and "tokenizer" not in options:
            init |= {"tokenizer": ByteTokenizer.name}
            told.append("bytes as tokens (--data.tokenizer)")
    init |= _limits(init, kind, max_samples) | options
    section = {"class_path": f"layersim.data.{_READ_BY[kind]}", "init_args": init}
    samples = None if kind == "tokens" else len(rows)
    return Guess(section, told, classes=classes, names=names, rows=samples)


def _check_options(name: str, options: dict[str, Any]) -> None:
    """Refuses, as every verb does, options that the class has not."""
    parser = Parser(prog="layersim look")
    parser.add_subclass_arguments(SplitDataModule, "data")
    typed = [f"--data.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]
    parser.parse_args([f"--data={name}", *typed])


def _of_a_class(
    section: dict[str, Any] | None,
    kind: Kind,
    backbone: Backbone,
    split: str | None,
    max_samples: int,
    options: dict[str, Any],
) -> Guess:
    """How the data of a recipe are read, or those that every installation has."""
    note = ""
    if section is None:
        name, note = _OWN[kind]
        section = SHIPPED[name]
    path, init = section["class_path"], dict(section.get("init_args") or {})
    stages: dict[str | None, Literal["val", "test"]] = {None: "val", "val": "val", "validation": "val", "test": "test"}
    if split not in stages:
        raise UserError(f"These data have the splits val and perhaps test, but got {split}. Change --split.")
    if options:
        _check_options(path, {key: init[key] for key in ("path",) if key in init} | options)
    if section == SHIPPED["digits"] and backbone.input_size not in (None, (1, 8, 8)):
        init |= {"resize": True}
    if section == SHIPPED["stdlib_code"]:
        init |= {"block_size": min(_BLOCK, getattr(backbone, "max_positions", None) or _BLOCK)}
        init |= {} if _reads_bytes(backbone) else {"tokenizer": None}
    if path.startswith("layersim.data."):  # others may have options of other names
        init |= _limits(init | options, kind, max_samples)
    return Guess({"class_path": path, "init_args": init | options}, [], stages[split], note)


def _limits(init: dict[str, Any], kind: Kind, max_samples: int) -> dict[str, Any]:
    most = max(1, max_samples // init.get("block_size", _BLOCK)) if kind == "tokens" else max_samples
    return {"max_eval_samples": most, "eval_batch_size": 8 if kind == "tokens" else 64}


def _reads_bytes(backbone: Backbone) -> bool:
    return not getattr(backbone, "tokenizer_name", None) and backbone.num_classes == ByteTokenizer.vocabulary_size


def _first(there: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in there), None)


def _column(rows: Dataset, path: str, kind: str, options: dict[str, Any], label: str | None) -> str:
    """The one whose images or texts the model reads."""
    if typed := options.get(f"{kind}_column"):
        return str(typed)
    others = (label, options.get("pair_column"))
    there = _images(rows) if kind == "image" else [name for name in _strings(rows) if name not in others]
    if not there:
        columns = ", ".join(rows.column_names)
        raise UserError(f"The model reads {kind}s, but {path} has none: its columns are {columns}. Change --data.")
    named = there[0] if len(there) == 1 else _first(there, _TEXTS) if kind == "text" else None
    if named is None:
        pairs = ", and of pairs --data.pair_column too" if kind == "text" else ""
        raise UserError(f"{path} has {kind}s in {' and '.join(there)}. Choose --data.{kind}_column{pairs}.")
    return named


def _strings(rows: Dataset) -> list[str]:
    kinds = ("string", "large_string", "string_view")
    return [name for name, kind in rows.features.items() if isinstance(kind, Value) and kind.dtype in kinds]


def _images(rows: Dataset) -> list[str]:
    return [name for name, kind in rows.features.items() if isinstance(kind, Image)]


def _labels(rows: Dataset, options: dict[str, Any]) -> tuple[str | None, str, int | None, list[str] | None]:
    """The column of labels, what to say of it, how many classes there are, and their names."""
    typed = options.get("label_column", "")
    if typed is None:
        return None, "", None, None
    content = {options.get(f"{what}_column") for what in ("text", "pair", "image")} | {*_images(rows)}
    free = [name for name in rows.column_names if name not in content]
    kinds = [name for name in free if isinstance(rows.features[name], ClassLabel)]
    column = typed or (kinds[0] if len(kinds) == 1 else _first(free, _LABELS))
    few = [name for name in free if not column and _has_few_values(rows, name)]
    column = column or (few[0] if len(few) == 1 else "")
    if not column:
        perhaps = f"; perhaps {' or '.join(few)}" if few else ""
        return None, f"no column of labels found (--data.label_column{perhaps})", None, None
    try:
        faults = label_faults(rows, column, role="train")
        labels = read_labels(rows, column, np.delete(np.arange(len(rows)), [*faults]), role="train")
    except UserError as error:
        if typed:
            raise
        return None, f"no labels: {str(error).rstrip('.')}", None, None
    if labels.values is None or not len(labels.values) or labels.values.min() < 0:
        return None, f"no labels: rows of {column} have none (--data.label_column)", None, None
    classes = len(labels.names) if labels.names else int(labels.values.max()) + 1
    absent = classes - len(np.unique(labels.values))
    note = f", {absent} of them absent" if absent else ""
    return column, f"{classes} classes in {column}{note} (--data.label_column)", classes, labels.names


def _has_few_values(rows: Dataset, name: str) -> bool:
    """Whether a column looks like one of classes: values that come twice and more."""
    feature = rows.features[name]
    if not isinstance(feature, Value) or not feature.dtype.startswith(("int", "uint", "bool", "string", "large_str")):
        return False
    values = rows.select_columns([name]).with_format("arrow")[:][name]
    distinct = pc.count_distinct(values).as_py()
    return bool(2 <= distinct <= _MOST_CLASSES and 2 * distinct <= len(rows))
