"""The Python standard library's own source files: a corpus that every install has."""

import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

from layersim.data.base import at_least
from layersim.data.blocks import BlockData
from layersim.data.byte_tokenizer import ByteTokenizer
from layersim.data.hashing import deal, digest
from layersim.data.packing import Boundaries
from layersim.data.sequences import Sequences, Tokens
from layersim.data.source_files import source_files
from layersim.data.splits import Split, check_fractions
from layersim.errors import UserError

# tests, whole programs, what was installed beside the library, tables and texts that are no code
_LEFT_OUT = {
    "test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "encodings", "pydoc_data",
}  # fmt: skip
# written when Python is built, so that they differ from machine to machine
_BUILT = ("_sysconfigdata", "config-")


class StdlibCode(BlockData):
    """Language modelling on the bytes of the standard library's .py files; deterministic for a version of Python.

    A document is a file. Which split it belongs to is drawn by a hash of the seed and its path, so that no file lies in
    two; of files with the same content only the first by path is read, and empty files are not. Without tests, IDLE,
    lib2to3, the encodings' tables and what is generated when Python is built. Read the tokens with `ByteTokenizer`.

    Args:
        val_fraction: share of the files held out for validation, rounded up.
        test_fraction: share of the files held out for testing, rounded up; with 0 there is no test data.
        max_files: read this many files, drawn by the seed; None: all.
        max_bytes: read, of the files in the order in which they are drawn, as many as fit in this many bytes.
        block_size: see BlockData.
        boundaries: see BlockData.
        keep_partial: see BlockData.
        max_train_samples: see BlockData.
        max_eval_samples: see BlockData.
        **loader: the options of SplitDataModule.

    Raises:
        UserError: an option out of its range.
    """

    test_option = "test_fraction"

    def __init__(
        self,
        *,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        max_files: int | None = None,
        max_bytes: int | None = None,
        block_size: int = 256,
        boundaries: Boundaries = "join",
        keep_partial: bool = True,
        max_train_samples: int | None = None,
        max_eval_samples: int | None = None,
        **loader: Any,
    ) -> None:
        super().__init__(
            block_size=block_size,
            boundaries=boundaries,
            keep_partial=keep_partial,
            max_train_samples=max_train_samples,
            max_eval_samples=max_eval_samples,
            **loader,
        )
        check_fractions(val_fraction, test_fraction)
        self.fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}
        self.max_files = None if max_files is None else at_least(1, "max_files", max_files)
        self.max_bytes = None if max_bytes is None else at_least(1, "max_bytes", max_bytes)
        self.files: dict[str, list[str]] = {}

    def load(self) -> dict[str, Split]:
        sources = read_sources(Path(sysconfig.get_path("stdlib")))
        chosen = choose(sources, max_files=self.max_files, max_bytes=self.max_bytes, seed=self.seed)
        dealt = deal(chosen, **self.fractions, seed=self.seed)
        if min(map(len, dealt.values())) == 0:
            raise UserError(
                f"max_files={self.max_files} and max_bytes={self.max_bytes} leave {len(chosen)} file(s), too few for "
                f"{', '.join(dealt)}: raise --data.max_files or --data.max_bytes"
            )
        self.files = {role: [chosen[place] for place in places] for role, places in dealt.items()}
        documents = {role: Sequences(_tokens(sources[path]) for path in paths) for role, paths in self.files.items()}
        return self.pack(documents, ByteTokenizer())


def read_sources(library: Path) -> dict[str, bytes]:
    """Content of the library's source files by relative path, sorted, without empty ones and repeated ones."""
    sources: dict[str, bytes] = {}
    seen: set[bytes] = set()
    for relative, path in source_files(library, left_out=_LEFT_OUT).items():
        if not any(part.startswith(_BUILT) for part in relative.split("/")):
            content = path.read_bytes()
            if content and content not in seen:
                sources[relative] = content
                seen.add(content)
    return sources


def choose(sources: dict[str, bytes], *, max_files: int | None, max_bytes: int | None, seed: int) -> list[str]:
    """Paths of at most so many files and bytes, drawn by the seed, in their own order."""
    drawn = sorted(sources, key=lambda path: digest("choose", seed, path))[:max_files]
    if max_bytes is not None:
        drawn = drawn[: int(np.searchsorted(np.cumsum([len(sources[path]) for path in drawn]), max_bytes, "right"))]
    return sorted(drawn)


def _tokens(content: bytes) -> Tokens:
    return np.append(np.frombuffer(content, np.uint8), ByteTokenizer.eos_id).astype(np.int32)
