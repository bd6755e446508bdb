"""What commands that read models with data share: options typed, options stored with a model, a closing word."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from layersim.commands.refusals import refusing


def typed(args: list[str], *names: str) -> dict[str, str | None]:
    """The values that were typed for these options, before the parser that they decide upon exists."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        peek.add_argument(f"--{name}", nargs="?")  # the parser itself says that a value is missing
    return vars(peek.parse_known_args(args)[0])


def parse(parser: ArgumentParser, args: list[str], stored: Sequence[Mapping[str, Any]]) -> Namespace:
    """The options; where no `--data` are typed, the first of the stored ones."""
    if stored and typed(args, "data")["data"] is None:
        args = ["--data", json.dumps(stored[0]), *args]
    return parser.parse_args(args)


def made(parser: ArgumentParser, options: Namespace) -> Namespace:
    """The options with their classes made; what these refuse is a UserError."""
    with refusing("These options do not go together", f"`{parser.prog} --help` lists them."):
        classes: Namespace = parser.instantiate_classes(options)
    return classes


def add_reading_options(parser: ArgumentParser, *, samples: str, seed: str) -> None:
    """`--split`, `--max_samples`, `--device` and `--seed`; the two texts say of what."""
    parser.add_argument("--split", type=Literal["val", "test"], default="val", help="The split of the data to read.")
    parser.add_argument("--max_samples", type=int, default=4096, help=samples)
    parser.add_argument("--device", type=str, default="auto", help="Where models run, such as cpu or cuda:1.")
    parser.add_argument("--seed", type=int, default=0, help=seed)


def print_outcome(table: Table, numbers: Path, figure: Path) -> None:
    """The table, and where numbers and figure lie, each path on a line of its own."""
    console = Console()
    console.print(table)
    for what, path in {"Numbers": numbers, "Figure": figure}.items():
        console.print(f"{what}: {path}", markup=False, highlight=False, soft_wrap=True)
