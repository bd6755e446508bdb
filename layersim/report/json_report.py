"""Reports of one JSON object in a run's directory, a key a line, and the form that they must have."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from layersim.errors import UserError
from layersim.report.json_values import with_nan, without_nan
from layersim.report.reading import damaging, read_json, read_text
from layersim.writing import written_whole

MOST_BYTES = 2**24
"""Of a report; those of two models of hundreds of layers have some hundred thousand."""


class Numbers(NamedTuple):
    """The form of numbers: their shape, in which a letter stands for one length; counts are whole and not below 0."""

    shape: tuple[int | str, ...] = ()
    counts: bool = False


ONE, COUNT, BY_LAYER = Numbers(), Numbers(counts=True), Numbers(("L",))
_OF_TYPES: dict[Any, Any] = {
    **{str: str, int: COUNT, float: ONE, list[float]: BY_LAYER, list[int]: Numbers(("L",), counts=True)},
    **{str | None: (None, str), int | None: (None, COUNT), float | None: (None, ONE)},
    list[float] | None: (None, BY_LAYER),
}
"""The forms of a report's fields, where their types tell them."""


def expect(key: str, value: Any, form: Any, sizes: dict[int | str, int] | None = None) -> None:
    """Refuses what has another form.

    Args:
        key: of the value, for errors.
        value: as JSON has it.
        form: `Numbers`; `str`; `object` of anything; `(None, form)` of what may be null; `[form]` of a list,
            `["T", form]` of one of length T, not 0; a mapping of keys that must be there, `str` among them for all.
        sizes: the lengths of letters.

    Raises:
        UserError: what was expected under which key, and what came.
    """
    sizes = {} if sizes is None else sizes
    match form:
        case Numbers():
            _expect_numbers(key, value, form, sizes)
        case (None, inner):
            if value is not None:
                expect(key, value, inner, sizes)
        case [*size, inner]:
            if not isinstance(value, list) or len(value) < len(size):
                raise UserError(f"{key}: expected a list, got {value!r}.")
            sizes |= dict.fromkeys(size, len(value))
            for number, item in enumerate(value):
                expect(f"{key}[{number}]", item, inner, dict(sizes))
        case Mapping():
            if not isinstance(value, Mapping):
                raise UserError(f"{key}: expected a JSON object, got {value!r}.")
            every = dict.fromkeys(value, form[str]) if str in form else form
            if absent := [name for name in every if name not in value]:
                raise UserError(f"{key}: expected the keys {', '.join(every)}; {', '.join(absent)} absent.")
            for name, inner in every.items():
                expect(f"{key}.{name}".removeprefix("."), value[name], inner, sizes)
        case _ if not isinstance(value, form):
            raise UserError(f"{key}: expected a name, got {value!r}.")


def _expect_numbers(key: str, value: Any, form: Numbers, sizes: dict[int | str, int]) -> None:
    try:
        array = np.asarray(value)
        got = f"{' × '.join(map(str, array.shape))} of type {array.dtype}" if array.shape else f"{value!r}"
    except ValueError:
        array, got = np.asarray(None), "rows of different lengths"
    if len(array.shape) == len(form.shape):
        sizes |= {letter: sizes.get(letter, length) for letter, length in zip(form.shape, array.shape, strict=True)}
    shape = [length if isinstance(length, int) else sizes.get(length, length) for length in form.shape]
    kinds, kind = ("i", "whole number") if form.counts else ("if", "number")
    if [*array.shape] != shape or array.dtype.kind not in kinds or (form.counts and array.min() < 0):
        expected = f"{' × '.join(map(str, shape))} {kind}s" if shape else f"one {kind}"
        raise UserError(f"{key}: expected {expected}{', 0 or more' if form.counts else ''}, got {got}.")


def _with_nan(value: Any, form: Any) -> Any:
    """The same with NaN for null, where the form has numbers that are no counts."""
    match form:
        case Numbers():
            return value if form.counts else with_nan(value)
        case (None, inner):
            return None if value is None else _with_nan(value, inner)
        case [*_, inner] if isinstance(value, list):
            return [_with_nan(item, inner) for item in value]
        case Mapping() if isinstance(value, dict):
            return {key: _with_nan(item, form.get(key, form.get(str, object))) for key, item in value.items()}
    return value


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a verb found, whose fields are the file's keys; L is its field `layers`. A UserError names a number, list or
    key that is missing or does not fit."""

    FILE: ClassVar[str]
    VERB: ClassVar[str]
    FORMS: ClassVar[dict[str, Any]] = {}
    """Of fields whose types do not tell them."""

    def __post_init__(self) -> None:
        expect("", vars(self), self._forms(), {"L": getattr(self, "layers", 0)})

    @classmethod
    def _forms(cls) -> dict[str, Any]:
        return {field.name: _OF_TYPES.get(field.type, object) for field in fields(cls)} | cls.FORMS

    def write(self, directory: Path) -> Path:
        """Writes the report into a directory, a key a line, NaN and infinity as null; gives the file's path."""
        return write_report(directory / self.FILE, asdict(self))

    @classmethod
    def read(cls, place: str | Path) -> Self | None:
        """The report in a directory, or in a file, None where there is none; DamagedFile where it does not fit. Null is
        NaN where a number must be; a key that this version does not know is passed over."""
        path = Path(place) / cls.FILE if Path(place).is_dir() else Path(place)
        if not path.exists():
            return None
        with damaging(f"{path} is damaged; run `layersim {cls.VERB}` again."):
            read = read_json(read_text(path, MOST_BYTES))
            keys = [field.name for field in fields(cls)]
            if absent := [key for key in keys if key not in read]:
                raise UserError(f"the file: {', '.join(absent)} absent.")
            return cls(**{key: _with_nan(read[key], cls._forms()[key]) for key in keys})


def write_report(path: Path, values: Mapping[str, Any]) -> Path:
    """Writes the values, a key a line, into a folder that is made where it is not there, and gives the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"  {json.dumps(key)}: {json.dumps(without_nan(value), allow_nan=False)}" for key, value in values.items())
    with written_whole(path) as part:
        part.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return path
