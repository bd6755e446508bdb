"""Docstrings of an installed package, read from its source files without importing it."""

import ast
import gc
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from layersim.data.hashing import digest
from layersim.data.source_files import source_files

# tests, and copies of other packages
_LEFT_OUT = {
    "test", "tests", "testing", "_vendor", "_vendored", "vendor", "vendored", "extern", "externals", "third_party",
}  # fmt: skip
Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
# where the prose ends: a heading underlined, a heading with a colon, an example, a directive or a field
_STRUCTURE = re.compile(
    r"^\s*(?:[-=~]{3,}\s*$|(?:args?|arguments?|parameters?|params|returns?|yields?|raises|examples?|notes?|inputs?|"
    r"outputs?|shape|attributes?|keyword args|references?|see also)\s*:+\s*$|>>>|\.\. |:\w+)",
    re.IGNORECASE | re.MULTILINE,
)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without garbage collection, which took most of the time of parsing; syntax trees have no cycles to collect."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def read_prose(folder: Path, *, seed: int) -> Iterator[str]:
    """The prose of every docstring below a folder, file by file in an order drawn by the seed.

    Files that this Python cannot parse (templates) are passed over, as are tests and copies of other packages.
    """
    files = source_files(folder, left_out=_LEFT_OUT)
    for relative in sorted(files, key=lambda relative: digest("file", seed, relative)):
        try:
            with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # of their escapes
                warnings.simplefilter("ignore", DeprecationWarning)
                tree = ast.parse(files[relative].read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in documented(tree):
            if text := ast.get_docstring(node):
                yield prose(text)


def documented(node: Documented) -> Iterator[Documented]:
    """A module, class or function, and those defined in it, in the order of the source.

    Only statements are looked through, not expressions: half the time of `ast.walk`.
    """
    yield node
    inside: list[ast.AST] = [*reversed(node.body)]
    while inside:
        statement = inside.pop()
        if isinstance(statement, Documented):
            yield from documented(statement)
        else:
            for block in ("cases", "finalbody", "orelse", "handlers", "body"):
                inside += reversed(getattr(statement, block, []))


def prose(docstring: str) -> str:
    """The paragraphs before the first heading, example, directive or field, on one line.

    Those parts show the package's style of documentation, which would tell it better than what is said.
    """
    if structure := _STRUCTURE.search(docstring):
        before = docstring[: structure.start()]
        underlined = structure[0].strip()[:1] in {"-", "=", "~"}
        # an underlined heading is the line above
        docstring = before.rstrip().rpartition("\n")[0] if underlined else before
    return " ".join(docstring.split())
