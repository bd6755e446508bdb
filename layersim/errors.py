"""The error that a user's input raises, and how what a library raises becomes one."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from math import inf
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import get_args


class UserError(ValueError):
    """What the user gave cannot be used: the message says what was expected, what came, and which option to change.

    Whatever takes options raises it for one out of its range; docstrings say for what else. The command prints it in
    one paragraph, without a traceback, and exits with status 2.
    """

    def __init__(self, said: str = "") -> None:
        # what a loader's worker raises, torch raises anew with the text of its traceback, which ends with what was said
        super().__init__(said.rpartition("UserError: ")[2].rstrip())


def check_choice(name: str, given: object, choices: object) -> None:
    """Refuses an option that is none of the values of a `Literal` (`| None`), which Python takes whatever it is.

    Raises:
        UserError: it is none of them.
    """
    known = [value for part in get_args(choices) for value in get_args(part) or [None if part is NoneType else part]]
    if given not in known:
        raise UserError(f"{name}: expected one of {', '.join(map(str, known))}, got {given!r}.")


def check_share(what: str, value: object, *, zero: bool = False, one: bool = False, remedy: str = "") -> None:
    """Refuses what is no number between 0 and 1, or an end that is allowed.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, Real) or not (
        0 < (share := float(value)) < 1 or (zero and share == 0) or (one and share == 1)
    ):
        ends = f"{'at least' if zero else 'above'} 0 and {'at most' if one else 'below'} 1"
        raise UserError(f"Expected {what} {ends}, but got {value}. {remedy}".rstrip())


def check_seed(seed: int, option: str = "--seed") -> int:
    """A seed, as torch, NumPy and Lightning take it: a whole number from 0 to 2³² − 1.

    Raises:
        UserError: it is none.
    """
    if not is_whole(seed) or not 0 <= seed < 2**32:
        raise UserError(f"A seed is a whole number from 0 to {2**32 - 1}, but got {seed!r}. Change {option}.")
    return int(seed)


def at_least(lowest: int, option: str, value: int) -> int:
    """The value, or a UserError that names the option, `--steps`, or of the data by its name alone."""
    if not is_whole(value) or value < lowest:
        whole = option if option.startswith("--") else f"--data.{option}"
        least = f"at least {lowest}" if is_whole(value) else f"a whole number of at least {lowest}"
        raise UserError(f"{option.lstrip('-')} must be {least}, got {value!r}: change {whole}")
    return int(value)


def check_finite(name: str, value: object, *, zero: bool = False, remedy: str) -> None:
    """Refuses, with a UserError, what is no finite number above 0, or 0 where that may be."""
    if not isinstance(value, Real) or not (0 < float(value) < inf or (zero and value == 0)):
        raise UserError(f"Expected {name} {'≥' if zero else '>'} 0, but got {value!r}. {remedy}")


def is_whole(value: object) -> bool:
    """Whether it is an integer, of Python or NumPy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def user_path(given: str | Path) -> Path:
    """A path that somebody typed, `~` being the home; a UserError where there is no such user or file name."""
    with as_user_error(f"{given} cannot be opened"):
        path = Path(given).expanduser()
        path.exists()
    return path


def meant(given: object, known: Iterable[str]) -> str:
    """« Did you mean …?» of at most three names that are near to what was given, likeliest first, or that hold it, or
    whose last part (`aligned` of `digits/aligned`) is near; "" where none is."""
    name, names = str(given), [*known]
    near = get_close_matches(name, names)
    near = near or [one for one in names if len(name) > 2 and name in one]
    near = near or [one for one in names if get_close_matches(name, [one.rpartition("/")[2]])]
    return f" Did you mean {' or '.join(near[:3])}?" if near else ""


def reason(error: BaseException) -> str:
    """What an exception says, in one line; its type too where a single word means nothing (`KeyError: 'blocks'`)."""
    said = " ".join(str(error).split())
    return said if " " in said else f"{type(error).__name__}: {said}".rstrip(": ")


def root_reason(error: BaseException) -> str:
    """What the first cause of an exception says: libraries wrap it in sentences that tell less."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason(error)


@contextmanager
def as_user_error(what: str, remedy: str = "", *, why: Callable[[BaseException], str] = reason) -> Iterator[None]:
    """The guard at a door to somebody else's code: whatever it raises in here becomes a UserError, «what: why remedy».

    A UserError passes as it is. The library's own exception stays its cause, which `LAYERSIM_DEBUG=1` shows.

    Args:
        what: what could not be done, such as "timm cannot build vit_tiny".
        remedy: a sentence that says which option to change.
        why: tells the exception in one line.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {why(error).rstrip('.')}. {remedy}".strip()) from error


@contextmanager
def of_option(option: str) -> Iterator[None]:
    """Remedies that name `--data` name this option in here, which takes data as that does."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"--data\b", option, str(error))) from error
