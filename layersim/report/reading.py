"""Files of a run as they are found, which anything may have damaged: read within limits, or told in one line."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any

import yaml

from layersim.errors import UserError, as_user_error
from layersim.report.secrets import masked

MOST_BYTES = 2**17
"""Of a file that is read whole; a configuration has some thousands, and YAML is slow."""
_DEEPEST = 40
_MOST_VALUES = 100_000
_LARGEST = 2**63
_PLAIN = {dict, list, str, bool, int, float, date, datetime, NoneType}


class DamagedFile(UserError):
    """A run's file that cannot be read, or holds what it should not: where several runs are read, this one is told and
    left out."""


class OnceLoader(yaml.SafeLoader):
    """Refuses a key that comes twice: YAML would forget the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        once([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return super().construct_mapping(node, deep)


@contextmanager
def damaging(where: object) -> Iterator[None]:
    """What is refused in here is the damage of a file, which begins what is said: `where`, and the refusal."""
    try:
        yield
    except UserError as error:
        raise DamagedFile(f"{where}: {error}" if isinstance(where, Path) else f"{where} {error}") from error


class _RunLoader(OnceLoader):
    """Refuses `<<`, which no run writes, and which takes forever where merges hold merges."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "expected no <<", key.start_mark)


@lru_cache(64)
def _parsed(text: str) -> Any:
    """A page asks several times, and YAML takes its time."""
    return yaml.load(text, _RunLoader)


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """A file's text; DamagedFile where it is no file, has more bytes than `most`, or is no UTF-8."""
    try:
        if not path.is_file():
            raise DamagedFile(f"expected a file, got {path}, which is none.")
        if (size := path.stat().st_size) > most:
            raise DamagedFile(f"expected at most {most:,} bytes in {path}, got {size:,}.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeError as error:
        raise DamagedFile(f"expected text in {path}, got what is no UTF-8 ({error}).") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A file's mapping, whose keys are text, and in which secrets are masked; DamagedFile where it is none."""
    text = read_text(path)
    with damaging(path):
        with as_user_error(f"expected YAML in {path.name}"):
            parsed = _parsed(masked(text))
        check_plain(parsed)
        if not isinstance(parsed, dict):
            raise UserError(f"expected a mapping, got {short(parsed)}.")
    return parsed


def read_json(text: str | bytes) -> dict[str, Any]:
    """A JSON object, whose numbers are finite. A UserError says where it is none: a key that comes twice; NaN, infinity
    or a number too large for 64 bits; values nested very deep; text that cannot be written."""
    with as_user_error("expected a JSON object, got what is no JSON"):
        read = json.loads(text, parse_constant=_no_number, object_pairs_hook=once)
    if not isinstance(read, dict):
        raise UserError(f"expected a JSON object, got {short(read)}.")
    check_plain(read, most=len(text), finite=True)
    return read


def check_plain(read: Any, most: int = _MOST_VALUES, *, finite: bool = False) -> None:
    """Refuses, with a UserError, what no run writes: nesting without end, as YAML's anchors make it, more than `most`
    values, text that cannot be written, numbers beyond 64 bits, where `finite` infinity too, and other types."""
    level = [read]
    for _ in range(_DEEPEST):
        kinds = set(map(type, level))  # most values are numbers, thousands in a level
        if other := kinds - _PLAIN:
            raise UserError(f"expected plain values, got {' and '.join(kind.__name__ for kind in other)}.")
        if int in kinds and any(type(each) is int and not -_LARGEST <= each < _LARGEST for each in level):
            raise UserError("expected numbers of at most 64 bits, got a larger one.")
        if finite and float in kinds and not all(math.isfinite(each) for each in level if type(each) is float):
            raise UserError("expected numbers of at most 64 bits, got infinity.")
        inner = [each for each in level if isinstance(each, dict | list)] if kinds & {dict, list} else []
        texts = [each for each in level if isinstance(each, str)] if str in kinds else []
        if any(None in each for each in inner if isinstance(each, dict)):
            raise UserError('expected text as a name, got null: YAML takes it for nothing, write "null" in quotes.')
        for text in (*texts, *(key for each in inner if isinstance(each, dict) for key in each)):
            if not isinstance(text, str) or any("\ud800" <= letter <= "\udfff" for letter in text):
                raise UserError(f"expected text, got {short(text)}.")
        if (most := most - len(level)) < sum(map(len, inner)):
            raise UserError("expected a few values, got more than anything reads (anchors within anchors?).")
        level = [item for each in inner for item in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return
    raise UserError(f"expected values nested at most {_DEEPEST} deep, got deeper ones.")


def short(value: Any) -> str:
    """A value for a message, cut where it is long; of what holds others their number."""
    if isinstance(value, dict | list | tuple) and len(value) > 5:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, str):
        value = value[:100]
    try:
        told = ascii(value)
    except (ValueError, RecursionError):  # numbers of thousands of digits, lists within themselves
        told = type(value).__name__
    return told if len(told) <= 80 else f"{told[:80]} …"


def once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A mapping of these pairs. Raises ValueError where a key comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)} comes twice")
    return found


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is written as null")
