"""Docstrings of installed packages, labelled by package: a text classification that every install has."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from lightning.pytorch.utilities import rank_zero_info

from layersim.data.base import at_least
from layersim.data.docstring_source import collector_paused, read_prose
from layersim.data.hashing import deal
from layersim.data.sentences import SentenceData, SentenceSplit
from layersim.data.splits import check_fractions
from layersim.errors import UserError
from layersim.installed_packages import package_folder

PACKAGES = ("matplotlib", "numpy", "pandas", "scipy", "sklearn", "sympy", "torch", "transformers")
"""Each comes with layersim: what it needs, and what that needs."""
MASK = "library"
"""What stands in a text where a package was named."""
_OTHER_NAMES = {
    "matplotlib": ["mpl", "pyplot", "plt"],
    "numpy": ["np"],
    "pandas": ["pd"],
    "sklearn": ["scikit-learn", "scikits.learn", "scikit learn"],
    "torch": ["pytorch"],
    "transformers": ["hugging face", "huggingface"],
}


class Docstrings(SentenceData):
    """Which package does a docstring come from?

    The text is a docstring's prose: the paragraphs before its first section, example or field. The names of all the
    packages, and their usual short forms, are replaced by "library" in every text, since they would give the label
    away (of all packages, not only its own: else a mask would give it away). Texts that are the same but for case,
    spacing and punctuation count once, and not at all where two packages share them. Every package gives equally many.
    Which split a text belongs to is drawn by a hash of the seed and its words, so that no text lies in two splits.
    Deterministic for given versions of the packages; "index" counts all texts, package by package.

    Args:
        packages: top-level packages, installed; the classes, in this order. None: PACKAGES.
        tokenizer: see SentenceData.
        per_package: texts of a package at most, before the split.
        min_characters: of a text.
        mask_names: replace the packages' names.
        val_fraction: share of the texts held out for validation, rounded up.
        test_fraction: share held out for testing, rounded up; with 0 there is no test data.
        max_length: see SentenceData.
        truncation: see SentenceData.
        length_bucketing: see SentenceData.
        pad_to_multiple: see SentenceData.
        **loader: the options of SplitDataModule.

    Raises:
        UserError: an option out of its range.
    """

    test_option = "test_fraction"

    def __init__(
        self,
        *,
        packages: list[str] | None = None,
        tokenizer: str | None = None,
        per_package: int = 1000,
        min_characters: int = 40,
        mask_names: bool = True,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        max_length: int = 128,
        truncation: Literal["cut", "refuse"] = "cut",
        length_bucketing: bool = False,
        pad_to_multiple: int = 1,
        **loader: Any,
    ) -> None:
        super().__init__(
            tokenizer=tokenizer,
            max_length=max_length,
            truncation=truncation,
            length_bucketing=length_bucketing,
            pad_to_multiple=pad_to_multiple,
            **loader,
        )
        check_fractions(val_fraction, test_fraction)
        self.packages = list(PACKAGES if packages is None else packages)
        if len(self.packages) < 2 or len(set(self.packages)) < len(self.packages):
            raise UserError(f"expected two or more different packages, got {self.packages}: change --data.packages")
        self.per_package = at_least(1, "per_package", per_package)
        self.min_characters = at_least(1, "min_characters", min_characters)
        self.mask_names = mask_names
        self.fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}

    def open(self) -> dict[str, SentenceSplit]:
        self.class_names = self.packages
        with collector_paused():
            found = balanced([self._texts(package) for package in self.packages], most=self.per_package)
        texts = [text for of_package in found for text in of_package]
        labels = np.repeat(np.arange(len(found)), len(found[0]))
        dealt = deal([words(text) for text in texts], **self.fractions, seed=self.seed)
        column = pa.array(texts, pa.string())
        splits = {
            role: SentenceSplit("docstrings", index, labels[index], column.take(index), seed=self.seed)
            for role, index in dealt.items()
        }
        sizes = ", ".join(f"{len(split)} in {role}" for role, split in splits.items())
        rank_zero_info(f"Docstrings: {len(found[0])} each of {', '.join(self.packages)}; {sizes}.")
        return splits

    def _texts(self, package: str) -> list[str]:
        """A package's texts; a few more than asked for, as some will turn out to be another package's too."""
        every = read_prose(package_folder(package, "change --data.packages"), seed=self.seed)
        named = naming(self.packages) if self.mask_names else None
        texts = (text if named is None else named.sub(MASK, text) for text in every)
        most = self.per_package + self.per_package // 10 + 10
        return distinct((text for text in texts if len(text) >= self.min_characters), most=most)


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
    """Equally many texts of each class, at most so many, without those that more than one class has.

    Raises:
        UserError: a class is left with none.
    """
    seen: dict[str, set[int]] = {}
    for label, texts in enumerate(classes):
        for text in texts:
            seen.setdefault(words(text), set()).add(label)
    own = [[text for text in texts if len(seen[words(text)]) == 1] for texts in classes]
    count = min(most, *map(len, own))
    if count == 0:
        raise UserError(
            f"the packages give {', '.join(str(len(texts)) for texts in own)} texts of their own: each must give one "
            f"or more; lower --data.min_characters or change --data.packages"
        )
    return [texts[:count] for texts in own]
