"""What W&B's agent types for a trial of its sweep, in the words that options read."""

import ast
import json
import os
from collections.abc import Container, Sequence
from itertools import groupby

CONFIG = "config"
"""The parameter of a sweep whose values are recipes, laid over the command's own."""


def under_agent() -> bool:
    """Whether an agent of W&B has started this process as a trial of its sweep."""
    return "WANDB_SWEEP_ID" in os.environ and "WANDB_RUN_ID" in os.environ


def from_agent(args: Sequence[str]) -> list[str]:
    """`--flag=value` with the value as YAML, where the agent printed it as Python does.

    `None` is `null`, and within lists and mappings too; `16.0` is `16`, since a quantized distribution draws whole
    floats for options that are whole numbers (an option of floats reads both alike). Among flags of this form that
    follow one another `--config` goes first, or a swept recipe would undo the others.
    """
    words: list[str] = []
    for are_flags, group in groupby(args, key=lambda word: word.startswith("--") and "=" in word):
        if are_flags:
            words += sorted(map(_plain, group), key=lambda word: not word.startswith(f"--{CONFIG}="))
        else:
            words += group
    return words


def whole_flag(name: str, options: Container[str]) -> str:
    """The whole flag, of those that there are, of an option that may be named in short, as on the command line.

    `model.optimizer.lr` is `model.optimizer.init_args.lr`, and `model.objective` is `model.objective.class_path`.
    """
    first, *parts = name.split(".")
    whole = first
    for part in parts:
        if f"{whole}.class_path" in options and part not in ("class_path", "init_args", "dict_kwargs"):
            whole += ".init_args"
        whole += f".{part}"
    return f"{whole}.class_path" if f"{whole}.class_path" in options else whole


def _plain(word: str) -> str:
    flag, _, printed = word.partition("=")
    try:
        value = ast.literal_eval(printed)
    except (ValueError, SyntaxError):
        return word  # a name or a path
    if isinstance(value, float) and value.is_integer():
        return f"{flag}={int(value)}"
    if value is None or isinstance(value, bool | list | dict):
        return f"{flag}={json.dumps(value)}"
    return word
