"""`layers.jsonl`: what was measured layer by layer, one line for each validation epoch.

The file that every figure, table and comparison of a run is drawn from. Letters: L layers.
"""

import json
import math
import os
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, get_args

from layersim.errors import UserError
from layersim.report.numbers import expect_curve, expect_numbers, perplexity
from layersim.report.progression_record import expect_progression

RECORDS_FILE = "layers.jsonl"

Stage = Literal["validate", "test"]

_REQUIRED = ("epoch", "step", "stage", "layers", "samples")


@dataclass(frozen=True)
class EffectiveDepth:
    """The first layer whose accuracy is within ε of the best layer's; layers count from 1."""

    epsilon: float | str
    """Or `interval`: the first layer whose difference from the best is within its interval."""
    layer: int
    best: int | None = None
    """The layer of the best accuracy, the first of several."""
    behind: float | None = None
    """By how much the best layer is more accurate."""
    low: float | None = None
    """Of that difference on the same samples, the 95 % interval's ends; None of tokens, which depend on each other."""
    high: float | None = None
    absolute_epsilon: float | None = None
    """Where it was asked for, the ε of arXiv 2406.14479."""
    absolute_layer: int | None = None
    """The first layer whose accuracy is at least 1 less that; None where no layer's is."""

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if value is not None and (key, value) != ("epsilon", "interval"):
                whole = key in ("layer", "best", "absolute_layer")
                expect_numbers(f"effective_depth.{key}", value, (), counts=whole)

    @property
    def within(self) -> str:
        """What it is within of the best, for people."""
        return "its interval" if self.epsilon == "interval" else f"{self.epsilon:g}"

    def told(self, layers: int) -> str:
        """For people, of so many layers."""
        if self.best is None:
            return f"{self.layer} at ε {self.within}"
        within = "within its interval" if self.epsilon == "interval" else f"at ε {self.within}"
        interval = "" if self.low is None else f", {self.low:.3f} … {self.high:.3f}"
        gap = "the best" if self.best == self.layer else f"layer {self.best} is {self.behind:.3f} better{interval}"
        return f"{self.layer} of {layers} {within} ({gap})"

    @property
    def absolute(self) -> str:
        """The absolute depth for people; empty where it was not asked for."""
        if self.absolute_epsilon is None:
            return ""
        return f"{self.absolute_layer or 'none'} at ε {self.absolute_epsilon:g}"


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One line of `layers.jsonl`.

    Lists run from the first layer to the last. What was not measured is None (dictionaries: empty) and
    its key is absent from the line; what was measured and has no value is NaN, and null in the line.

    Raises:
        UserError: a list has not L entries, a matrix is not L × L, or an entry is no number; the key is named.
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
    unit: Literal["samples", "tokens"] = "samples"
    """What a sample is; a language model's are tokens. Absent from the line where it is an input of its own."""
    accuracy: list[float] | None = None
    """L shares, 0 … 1."""
    loss: list[float] | None = None
    """L mean cross-entropies in nats."""
    saturation: list[int] | None = None
    """L counts: the samples whose saturation layer is this one."""
    saturated_early: float | None = None
    """Share of the samples whose saturation layer is not the last, 0 … 1."""
    mean_saturation_layer: float | None = None
    """Counted from 1."""
    effective_depth: EffectiveDepth | None = None
    f1: list[float] | None = None
    """L shares, 0 … 1, of tasks of two classes."""
    exit_curve: dict[str, list[Any]] = field(default_factory=dict)
    """`threshold`, `mean_exit_layer` (from 1) and `accuracy` of exits by confidence, K numbers each; threshold None:
    nobody leaves early."""
    exit_curve_area: float | None = None
    """Mean accuracy over the mean exit layers 1 … L, 0 … 1."""
    similarity: dict[str, list[list[float]]] = field(default_factory=dict)
    """L × L for each measure, by the measure's name."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How each measure was computed, by the measure's name: numbers compare only where these agree."""
    similarity_interval: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`confidence` and, L × L, `low` and `high` for each measure that was asked for them."""
    similarity_to_epoch: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """L similarities of each layer to itself at an earlier epoch, by the measure's name, then that epoch's number."""
    progression: dict[str, Any] = field(default_factory=dict)
    """What the path from the first layer to the last looks like, see `expect_progression`."""

    def __post_init__(self) -> None:
        if self.stage not in get_args(Stage):
            raise UserError(f"stage: expected one of {', '.join(get_args(Stage))}, got {self.stage!r}.")
        for key in ("epoch", "step", "layers", "samples"):
            expect_numbers(key, getattr(self, key), (), counts=True)
        if self.unit not in ("samples", "tokens"):
            raise UserError(f"unit: expected samples or tokens, got {self.unit!r}.")
        for key in ("layers", "samples"):
            if getattr(self, key) == 0:
                raise UserError(f"{key}: expected 1 or more, got 0.")
        for key in ("saturated_early", "mean_saturation_layer", "exit_curve_area"):
            if getattr(self, key) is not None:
                expect_numbers(key, getattr(self, key), ())
        for key in ("accuracy", "loss", "f1", "saturation"):
            if getattr(self, key) is not None:
                expect_numbers(key, getattr(self, key), (self.layers,), counts=key == "saturation")
        for measure, matrix in self.similarity.items():
            expect_numbers(f"similarity.{measure}", matrix, (self.layers, self.layers))
        for measure, interval in self.similarity_interval.items():
            for end in ("low", "high"):
                expect_numbers(f"similarity_interval.{measure}.{end}", interval.get(end), (self.layers, self.layers))
            expect_numbers(f"similarity_interval.{measure}.confidence", interval.get("confidence"), ())
        for measure, epochs in self.similarity_to_epoch.items():
            for epoch, values in epochs.items():
                expect_numbers(f"similarity_to_epoch.{measure}.{epoch}", values, (self.layers,))
        if self.exit_curve:
            expect_curve("exit_curve", self.exit_curve)
        if self.progression:
            expect_progression(self.progression, self.layers)

    @property
    def perplexity(self) -> list[float] | None:
        """L perplexities of a token; None where samples are no tokens, or the loss was not measured."""
        return perplexity(self.loss) if self.unit == "tokens" and self.loss is not None else None

    def to_line(self) -> str:
        """The record as one line of JSON, without the newline. JSON has neither NaN nor infinity: both become null."""
        present = {key: value for key, value in asdict(self).items() if value not in (None, {})}
        if self.unit == "samples":
            del present["unit"]
        if depth := present.get("effective_depth"):
            present["effective_depth"] = {key: value for key, value in depth.items() if value is not None}
        return json.dumps(_without_nan(present), allow_nan=False)

    @classmethod
    def from_line(cls, line: str | bytes) -> Self:
        """What `to_line` wrote; null becomes NaN, and a key that this version does not know is passed over.

        Raises:
            UserError: the line is no JSON object, a key is missing, or a value does not fit (the key is named).
        """
        try:
            read = json.loads(line, parse_constant=_refuse)
        except ValueError as error:
            raise UserError(f"expected a JSON object, got what is no JSON: {error}.") from error
        if not isinstance(read, dict):
            raise UserError(f"expected a JSON object, got {read!r}.")
        if absent := [key for key in _REQUIRED if key not in read]:
            raise UserError(f"expected the keys {', '.join(_REQUIRED)}; {', '.join(absent)} absent.")
        objects = [f.name for f in fields(cls) if f.default_factory is dict]
        for key in (*objects, "effective_depth"):
            if not isinstance(read.get(key, {}), dict):
                raise UserError(f"{key}: expected a JSON object, got {read[key]!r}.")
        known = {f.name for f in fields(cls)}
        as_written = ("options", "exit_curve")  # null is None there
        values = {key: value if key in as_written else _with_nan(value) for key, value in read.items() if key in known}
        if "effective_depth" in values:
            depth = values["effective_depth"]
            if not {"epsilon", "layer"} <= set(depth):
                raise UserError(f"effective_depth: expected the keys epsilon and layer, got {depth!r}.")
            names = [f.name for f in fields(EffectiveDepth)]
            values["effective_depth"] = EffectiveDepth(**{name: depth[name] for name in names if name in depth})
        return cls(**values)


def append_record(path: Path, record: LayerRecord) -> None:
    """Adds one line to the file, making file and folder where there are none.

    The line goes out in one write and is on the disk when this returns: an interrupted run loses at most the line it
    was writing. Such a cut line, found at the end, is taken off first, with a warning.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        if end := _after_last_newline(file.read()):
            warnings.warn(f"{path}: the last line was cut by an interruption and is taken off.", stacklevel=2)
            file.truncate(file.tell() - len(end))
        file.write(record.to_line().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path) -> list[LayerRecord]:
    """All records of the file, in the order in which they were written.

    A line counts when its newline is there: a last line without one was cut by an interruption; it is left out, with
    a warning.

    Raises:
        UserError: the file cannot be read, or a line is broken; the file and the line's number are named.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"expected the records of a run in {path}, which cannot be read: {error.strerror}.") from error
    if end := _after_last_newline(content):
        warnings.warn(f"{path}: the last line was cut by an interruption and is left out.", stacklevel=2)
    records = []
    for number, line in enumerate(content.removesuffix(end).splitlines(), start=1):
        try:
            records.append(LayerRecord.from_line(line))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    return records


def _after_last_newline(content: bytes) -> bytes:
    return content[content.rfind(b"\n") + 1 :]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is written as null")
