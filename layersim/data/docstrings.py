"""Docstrings of installed packages, labelled by package: a text classification that every install has."""

import ast
import gc
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from lightning.pytorch.utilities import rank_zero_info

from layersim.data.base import DrawnSplits
from layersim.data.sentence_split import SentenceSplit
from layersim.data.stdlib_code import deal, digest, source_files
from layersim.data.text import SentenceData
from layersim.errors import UserError, at_least
from layersim.installed_packages import package_folder

PACKAGES = ("matplotlib", "numpy", "pandas", "scipy", "sklearn", "sympy", "torch", "transformers")
"""Each comes with layersim: what it needs, and what that needs."""
MASK = "library"
"""What stands in a text where a package was named."""
SHORTEST = 40
"""Characters that a text has at least."""
_OTHER_NAMES = {
    "matplotlib": ["mpl", "pyplot", "plt"],
    "numpy": ["np"],
    "pandas": ["pd"],
    "sklearn": ["scikit-learn", "scikits.learn", "scikit learn"],
    "torch": ["pytorch"],
    "transformers": ["hugging face", "huggingface"],
}


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


class Docstrings(DrawnSplits, SentenceData):
    """Which package does a docstring come from?

    The text is a docstring's prose, of 40 characters or more: the paragraphs before its first section, example or
    field. The names of all the packages, and their usual short forms, are replaced by "library" in every text, since
    they would give the label away (of all packages, not only its own: else a mask would give it away). Texts that are
    the same but for case, spacing and punctuation count once, and not at all where two packages share them. Every
    package gives equally many. Which split a text belongs to is drawn by a hash of the seed and its words, so that no
    text lies in two splits. Deterministic for given versions of the packages; "index" counts all texts, package by
    package.

    Args:
        packages: top-level packages, installed; the classes, in this order. None: PACKAGES.
        per_package: texts of a package at most, before the split.
        max_length: tokens of a text at most, as in SentenceData.
        **options: those of DrawnSplits and SentenceData.
    """

    def __init__(
        self,
        *,
        packages: list[str] | None = None,
        per_package: int = 1000,
        max_length: int = 128,
        **options: Any,
    ) -> None:
        super().__init__(max_length=max_length, **options)
        self.packages = list(PACKAGES if packages is None else packages)
        if len(self.packages) < 2 or len(set(self.packages)) < len(self.packages):
            raise UserError(f"expected two or more different packages, got {self.packages}: change --data.packages")
        self.per_package = at_least(1, "per_package", per_package)

    def open(self) -> dict[str, SentenceSplit]:
        self.class_names = self.packages
        running = gc.isenabled()
        gc.disable()  # which took most of the time of parsing; syntax trees have no cycles to collect
        try:
            found = balanced([self._texts(package) for package in self.packages], most=self.per_package)
        finally:
            if running:
                gc.enable()
        texts = [text for of_package in found for text in of_package]
        labels = np.repeat(np.arange(len(found)), len(found[0]))
        dealt = deal([words(text) for text in texts], self.val_fraction, self.test_fraction, seed=self.seed)
        column = pa.array(texts, pa.string())
        splits = {}
        for role, found_in in dealt.items():
            index = self.capped(role, found_in)
            splits[role] = SentenceSplit("docstrings", index, labels[index], column.take(index), seed=self.seed)
        sizes = ", ".join(f"{len(split)} in {role}" for role, split in splits.items())
        rank_zero_info(f"Docstrings: {len(found[0])} each of {', '.join(self.packages)}; {sizes}.")
        return splits

    def _texts(self, package: str) -> list[str]:
        """A package's texts; a few more than asked for, as some will turn out to be another package's too."""
        every = read_prose(package_folder(package, "change --data.packages"), seed=self.seed)
        named = naming(self.packages)
        texts = (named.sub(MASK, text) for text in every)
        most = self.per_package + self.per_package // 10 + 10
        return distinct((text for text in texts if len(text) >= SHORTEST), most=most)


def naming(packages: Sequence[str]) -> re.Pattern[str]:
    """Matches the packages' names and their usual short forms as whole words, whatever their case."""
    names = {name for package in packages for name in [package, *_OTHER_NAMES.get(package, [])]}
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)


def words(text: str) -> str:
    """What makes two texts the same: their words, without case, spacing and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def distinct(texts: Iterable[str], *, most: int) -> list[str]:
    """The first so many texts of different words; reads no further."""
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(words(text), text)
        if len(found) == most:
            break
    return list(found.values())


def balanced(classes: Sequence[Sequence[str]], *, most: int) -> list[list[str]]:
    """Equally many texts of each class, at most so many and not none, without those that more than one class has."""
    seen: dict[str, set[int]] = {}
    for label, texts in enumerate(classes):
        for text in texts:
            seen.setdefault(words(text), set()).add(label)
    own = [[text for text in texts if len(seen[words(text)]) == 1] for texts in classes]
    count = min(most, *map(len, own))
    if count == 0:
        raise UserError(
            f"the packages give {', '.join(str(len(texts)) for texts in own)} texts of their own: each must give one "
            "or more; change --data.packages"
        )
    return [texts[:count] for texts in own]


def read_prose(folder: Path, *, seed: int) -> Iterator[str]:
    """The prose of every docstring below a folder, file by file in an order drawn by the seed.

    Files that this Python cannot parse (templates) are passed over, as are tests and copies of other packages.
    """
    files = source_files(folder, left_out=_LEFT_OUT)
    for relative in sorted(files, key=lambda relative: digest("file", seed, relative)):
        try:
            with warnings.catch_warnings(action="ignore"):  # of their escapes
                tree = ast.parse(files[relative].read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in documented(tree):
            if text := ast.get_docstring(node):
                yield prose(text)


def documented(node: ast.AST) -> Iterator[Documented]:
    """Modules, classes and functions, and those defined in them, in the order of the source.

    Only statements are looked through, not expressions: half the time of `ast.walk`.
    """
    if isinstance(node, Documented):
        yield node
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        for inside in getattr(node, block, []):
            yield from documented(inside)


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
