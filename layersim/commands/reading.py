"""The options of verbs that read models with data; nothing heavy is imported until one of them needs it."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from layersim.commands.parser import Parser
from layersim.errors import as_user_error

if TYPE_CHECKING:
    from rich.table import Table

FORMS = (
    "a checkpoint (….ckpt), a run's directory, a recipe (….yaml), timm:NAME, or transformers:NAME, where NAME is on "
    "the hub, a folder, or package:PACKAGE/FOLDER"
)


class ReadingParser(Parser):
    """The parser of such a verb, which `reading_parser` makes."""

    typed: Sequence[str] = ()
    """What stands behind the verb."""
    helps = False
    """Whether help is all that is asked for, for which no class is imported."""

    def add_data(self, name: str, told: str) -> None:
        """An option for data, by the class and its options."""
        if self.helps:
            self.add_argument(f"--{name}", metavar="CLASS", help=f"{told} `--{name}.help CLASS` tells its options.")
            return
        from layersim.data import SplitDataModule

        self.add_subclass_arguments(SplitDataModule, name, required=False, help=told)

    def read(self, stored: Sequence[Mapping[str, Any] | None] = ()) -> Namespace:
        """The options; where no `--data` are typed, the first of the stored ones."""
        known = [data for data in stored if data]
        if known and peek(self.typed, "data")["data"] is None:
            return self.parse_args(["--data", json.dumps(known[0]), *self.typed])
        return self.parse_args(self.typed)

    def made(self, options: Namespace) -> Namespace:
        """The options with their classes made; what these refuse is a UserError."""
        from layersim.commands.refusals import refusing

        with refusing("These options do not go together", f"`{self.prog} --help` lists them."):
            classes: Namespace = self.instantiate_classes(options)
        return classes


def reading_parser(args: Sequence[str], *, samples: str, seed: str, to: str, **options: Any) -> ReadingParser:
    """A parser of these words with `--split`, `--max_samples`, `--device`, `--seed`, `--to`; the texts say of what."""
    parser = ReadingParser(allow_abbrev=False, **options)
    parser.typed, parser.helps = args, list(args) in (["--help"], ["-h"])
    parser.add_argument("--split", type=Literal["val", "test"], default="val", help="The split of the data to read.")
    parser.add_argument("--max_samples", type=int, default=4096, help=samples)
    parser.add_argument("--device", type=str, default="auto", help="Where models run, such as cpu or cuda:1.")
    parser.add_argument("--seed", type=int, default=0, help=seed)
    parser.add_argument("--to", type=Path | None, default=None, metavar="DIR", help=to)
    return parser


def peek(args: Sequence[str], *names: str) -> dict[str, str | None]:
    """The values that were typed for these options, before the parser that they decide upon exists."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(f"--{name}", nargs="?")  # the parser itself says that a value is missing
    return vars(parser.parse_known_args(list(args))[0])


def make_directory(to: Path) -> Path:
    """The directory, made where it is not there.

    Raises:
        UserError: it cannot be made.
    """
    with as_user_error(f"The directory {to} cannot be made", "Change --to."):
        to.mkdir(parents=True, exist_ok=True)
    return to


def print_outcome(table: "Table", numbers: Path, figure: Path) -> None:
    """The table, and where numbers and figure lie, each path on a line of its own."""
    from rich.console import Console

    console = Console()
    console.print(table)
    for what, path in {"Numbers": numbers, "Figure": figure}.items():
        console.print(f"{what}: {path}", markup=False, highlight=False, soft_wrap=True)
