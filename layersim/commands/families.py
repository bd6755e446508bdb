"""`layersim families`: which families of timm and transformers are read, and why others are not."""

from importlib.metadata import version
from typing import Literal

from transformers.utils import logging

from layersim.backbones.survey import survey
from layersim.errors import UserError


def families(names: list[str] = [], *, library: Literal["timm", "transformers"] | None = None) -> None:  # noqa: B006
    """Which families are read: a line a family and use, as a tiny model of each is built.

    Args:
        names: families, such as bert or vision_transformer; all where left out
        library: one of the two, timm or transformers, which names need; both where left out

    Raises:
        UserError: names without their library, or that it does not know.
    """
    if names and library is None:
        raise UserError("Expected the library that the families are of. Add --library timm or transformers.")
    logging.set_verbosity_error()
    for one in ("timm", "transformers") if library is None else (library,):
        print(f"{one} {version(one)}\n\n| family | use | read |\n| --- | --- | --- |")
        for reading in survey(one, names):
            print(f"| {reading.family} | {reading.use} | {reading.refused or 'yes'} |", flush=True)
        print()
