"""`layersim recipes`: the recipes that come with layersim, which every verb takes by name, `--config recipe:NAME`."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill

from layersim.errors import UserError, meant

_PACKAGE = Path(__file__).parent.parent
ROOT = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent / "experiments"
"""Where they are: inside of the package that a wheel installed, beside it in a checkout."""


def recipes(names: list[str] = []) -> None:  # noqa: B006 - read only
    """List the recipes that come with layersim, each with what it shows.

    Args:
        names: print these recipes themselves, to copy and change

    Raises:
        UserError: a name that no recipe has.
    """
    for name in names:
        print(path_of(name).read_text(encoding="utf-8"), end="")
    for name, path in {} if names else named().items():
        print(f"{name}\n{fill(shows(path), 79, initial_indent='    ', subsequent_indent='    ')}")


def named() -> dict[str, Path]:
    """Every recipe by its name: its place below `experiments/`, without `vision/` or `text/`."""
    places = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in ROOT.rglob("*.yaml")}
    return dict(sorted((re.sub("^(vision|text)/", "", place), path) for place, path in places.items()))


def shows(path: Path) -> str:
    """The first sentence of a recipe's header."""
    header = path.read_text(encoding="utf-8").partition("\n#\n")[0]
    return re.split(r"(?<=[.;?]) (?![^(]*\))", header.replace("\n#", "").removeprefix("# "))[0].rstrip(";.")


def path_of(name: str) -> Path:
    """The file of the recipe of this name."""
    there = named()
    if name not in there:
        raise UserError(f"There is no recipe {name!r}.{meant(name, there)} `layersim recipes` lists them.")
    return there[name]


def with_paths(words: Iterable[str]) -> list[str]:
    """The words of a command line, with its path in place of each `recipe:NAME`, and of a `~/` behind an option's
    equals sign, which shells leave as it is."""

    def path(found: re.Match[str]) -> str:
        option, recipe, below_home = found.groups()
        return f"{option}{path_of(recipe) if recipe else os.path.expanduser(below_home)}"

    return [re.sub(r"^(-[\w.-]+=|)(?:recipe:(.+)|(~[\w.-]*/.*))", path, word) for word in words]
