"""What the terminal shows before a run and after it, so narrow that it fits, with paths and commands that can be
copied."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

from rich.console import Console

_NAME = 9
"""Columns of a fact's name."""


def print_facts(facts: Mapping[str, str | Sequence[str]]) -> None:
    """A line or more for each fact behind its name; what has no text is left out.

    Lines break between words alone, so that a path or a command comes out whole however long it is.
    """
    width = max(40, Console().width)
    for name, told in facts.items():
        for number, text in enumerate(filter(None, [told] if isinstance(told, str) else told)):
            line = fill(
                text,
                width,
                initial_indent=f"{'' if number else name:<{_NAME}}",
                subsequent_indent=" " * _NAME,
                break_long_words=False,
                break_on_hyphens=False,
            )
            print(line, flush=True)  # not by a console of rich's, which would write into a bar that lives


def print_next(commands: Mapping[str, Sequence[str]]) -> None:
    """What may be typed next, by what it does: each command on a line of its own."""
    for does, words in commands.items():
        print(f"{does}:\n  {shlex.join(words)}", flush=True)


def shown(path: Path) -> str:
    """The path as it would be typed here: relative where it lies below the working directory."""
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)
