"""The Python standard library's own source files: a corpus that every install has."""

import hashlib
import math
import os
import sysconfig
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from layersim.data.base import DrawnSplits
from layersim.data.blocks import BlockData
from layersim.data.splits import Integers
from layersim.errors import UserError, at_least

# tests, whole programs, what was installed beside the library, tables and texts that are no code
_LEFT_OUT = {
    "test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "encodings", "pydoc_data",
}  # fmt: skip
# written when Python is built, so that they differ from machine to machine
_BUILT = ("_sysconfigdata", "config-")


class StdlibCode(DrawnSplits, BlockData):
    """Language modelling on the standard library's .py files, byte by byte unless a tokenizer is named; deterministic
    for a version of Python.

    A document is a file. Which split it belongs to is drawn by a hash of the seed and its path, so that no file lies in
    two; of files with the same content only the first by path is read, and empty files are not. Without tests, IDLE,
    lib2to3, the encodings' tables and what is generated when Python is built.

    Args:
        max_files: read this many files, drawn by the seed; None: all.
        max_bytes: read, of the files in the order in which they are drawn, as many as fit in this many bytes.
        tokenizer: as in BlockData.
        **options: those of DrawnSplits, whose shares are of the files, and of BlockData.
    """

    def __init__(
        self,
        *,
        max_files: int | None = None,
        max_bytes: int | None = None,
        tokenizer: str | None = "bytes",
        **options: Any,
    ) -> None:
        super().__init__(tokenizer=tokenizer, **options)
        self.max_files = None if max_files is None else at_least(1, "max_files", max_files)
        self.max_bytes = None if max_bytes is None else at_least(1, "max_bytes", max_bytes)
        self.files: dict[str, list[str]] = {}

    def open(self) -> dict[str, pa.ChunkedArray]:
        sources = read_sources(Path(sysconfig.get_path("stdlib")))
        chosen = choose(sources, max_files=self.max_files, max_bytes=self.max_bytes, seed=self.seed)
        dealt = deal(chosen, self.val_fraction, self.test_fraction, seed=self.seed)
        if min(map(len, dealt.values())) == 0:
            raise UserError(
                f"max_files={self.max_files} and max_bytes={self.max_bytes} leave {len(chosen)} file(s), too few for "
                f"{', '.join(dealt)}: raise --data.max_files or --data.max_bytes"
            )
        self.files = {role: [chosen[place] for place in places] for role, places in dealt.items()}
        return {
            role: pa.chunked_array([[sources[path].decode(errors="replace") for path in paths]])
            for role, paths in self.files.items()
        }


def read_sources(library: Path) -> dict[str, bytes]:
    """Content of the library's source files by relative path, sorted, without empty ones and repeated ones."""
    first: dict[bytes, str] = {}
    for relative, path in source_files(library, left_out=_LEFT_OUT).items():
        if not any(part.startswith(_BUILT) for part in relative.split("/")):
            first.setdefault(path.read_bytes(), relative)
    return {relative: content for content, relative in first.items() if content}


def choose(sources: dict[str, bytes], *, max_files: int | None, max_bytes: int | None, seed: int) -> list[str]:
    """Paths of at most so many files and bytes, drawn by the seed, in their own order."""
    drawn = sorted(sources, key=lambda path: digest("choose", seed, path))[:max_files]
    if max_bytes is not None:
        drawn = drawn[: int(np.searchsorted(np.cumsum([len(sources[path]) for path in drawn]), max_bytes, "right"))]
    return sorted(drawn)


def source_files(folder: Path, *, left_out: Collection[str]) -> dict[str, Path]:
    """Every .py file by its path relative to the folder, sorted; folders of these names are not entered."""
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in left_out]
        paths = (Path(place, name) for name in names if name.endswith(".py"))
        found.update({path.relative_to(folder).as_posix(): path for path in paths})
    return dict(sorted(found.items()))


def digest(*parts: object) -> int:
    """64 bits of a hash of these parts, by their text."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big")


def deal(names: Sequence[str], val_fraction: float, test_fraction: float, *, seed: int) -> dict[str, Integers]:
    """Positions of the names in "train", "val" and, unless its fraction is 0, "test"; each in ascending order.

    Names are ordered by their hash: the first are for validation, the next for testing, each share rounded up.
    """
    order = np.array(sorted(range(len(names)), key=lambda place: digest("split", seed, names[place])), dtype=np.int64)
    val = math.ceil(val_fraction * len(names))
    test = val + math.ceil(test_fraction * len(names))
    dealt = {"train": order[test:], "val": order[:val]}
    if test_fraction > 0:
        dealt["test"] = order[val:test]
    return {role: np.sort(places) for role, places in dealt.items()}
