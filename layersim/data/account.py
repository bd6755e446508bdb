"""What is told of the data: files, samples of each split, what was held out, capped or left out; and the samples that
training and evaluation share by content, whatever their rows and names."""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from layersim.data.splits import Integers

MOST_BYTES = 2**30
"""Read without being asked for, to find samples that are shared: a few seconds."""


def tell(opened: str, shares: Iterable[str]) -> None:
    """Says, once, what was opened and what of it each split has."""
    rank_zero_info(f"Data: {'; '.join([opened, *shares])}.")


def share(role: str, kept: int, found: int, unit: str, *notes: str) -> str:
    """What a split has: «720 of 900 samples in train (max_train_samples=720)»; notes that are empty are left out."""
    capped = f"max_{'train' if role == 'train' else 'eval'}_samples={kept}" if kept < found else ""
    said = ", ".join(note for note in (*notes, capped) if note)
    count = f"{kept} of {found}" if capped else kept
    return f"{count} {unit}{'s' * (found != 1)} in {role}{f' ({said})' if said else ''}"


def held_out(train_split: str, fraction: float) -> str:
    """A note: of which split, and by what, the validation data was held out."""
    return f"held out of {train_split} by val_fraction={fraction}"


def folder(location: Path, files: Mapping[str, Sequence[str]], used: set[str], unlisted: str = "") -> str:
    """What is read of a folder whose splits have these files: those of the `used` ones by kind, and what is not."""
    read = [file for split, paths in files.items() if split in used for file in paths]
    known = {file for paths in files.values() for file in paths}
    others, passed = below(location.resolve())
    left_out = [unlisted, _kinds(file for file in others if file not in known)]
    left_out += [f"{count} {kind}{'s' * (count > 1 and kind != 'hidden')}" for kind, count in passed.items()]
    left_out += [f"split {split}" for split in files if split not in used]
    return f"{_kinds(read)} in {location}{not_read(left_out)}"


def not_read(parts: Iterable[str]) -> str:
    """«(not read: 2 png files, split test)», without the parts that are empty; nothing where all are."""
    said = ", ".join(part for part in parts if part)
    return f" (not read: {said})" if said else ""


def below(location: Path) -> tuple[list[str], Counter[str]]:
    """The files below a folder, and how many names in it `datasets` passes over: those that it takes for hidden (hidden
    folders count once), links to folders, and folders in which nothing is."""
    found: list[str] = []
    passed: Counter[str] = Counter()
    for place, folders, names in os.walk(location):
        visible = [name for name in folders if not name.startswith((".", "__"))]
        files = [name for name in names if not name.startswith(".")]
        passed["hidden"] += len(folders) - len(visible) + len(names) - len(files)
        passed["linked folder"] += sum(os.path.islink(os.path.join(place, name)) for name in visible)
        passed["empty folder"] += not visible and not files
        folders[:] = visible
        found += [os.path.join(place, name) for name in files]
    return found, +passed


def _kinds(files: Iterable[str]) -> str:
    """«3 csv files, 1 png file»."""
    found = Counter(Path(file).suffix.lstrip(".").lower() or "nameless" for file in files)
    return ", ".join(f"{count} {kind} file{'s' * (count > 1)}" for kind, count in found.most_common())


class Contents:
    """What N samples are, to be compared: texts as they are but for those of white space alone, of which there is
    nothing to compare; images by their files' bytes, read when asked for.

    Args:
        column: (M,) strings, or structs of an image's "bytes" and "path".
        rows: (N,) of the column; all where None.
    """

    def __init__(self, column: pa.ChunkedArray, rows: Integers | None = None) -> None:
        self.column = column
        self.rows = np.arange(len(column)) if rows is None else rows
        self.images = pa.types.is_struct(column.type)
        held = pc.struct_field(column, "bytes") if self.images else pc.utf8_trim_whitespace(column)
        self.sizes: Integers = pc.fill_null(pc.binary_length(held), -1).to_numpy()[self.rows].astype(np.int64)
        if self.images and len(outside := np.flatnonzero(self.sizes < 0)):
            paths = pc.struct_field(column, "path").take(pa.array(self.rows[outside])).to_pylist()
            self.sizes[outside] = [os.path.getsize(path) if path and os.path.isfile(path) else -1 for path in paths]
        self.count = int((self.sizes > 0).sum())
        """Of how many there is something to compare."""

    def read(self, places: Integers) -> pa.Array | pa.ChunkedArray:
        """Of the samples at these places what can be compared; null where there is none."""
        rows = self.rows[places]
        if not self.images:
            return self.column.take(pa.array(rows))
        return pa.array([_digest(self.column[int(row)].as_py()) for row in rows], pa.binary())


def contents(*columns: pa.ChunkedArray) -> Contents:
    """Of texts, or of pairs of them."""
    between = pa.scalar("\0", columns[0].type)
    return Contents(columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, between))


def tell_duplicates(samples: Mapping[str, Contents], unit: str, *, wanted: bool | None) -> None:
    """Says how many samples of "val" and "test" are in "train" too; nothing where none is.

    Only what has the length of a sample of the other split is read, and not more than MOST_BYTES unless `wanted`.
    """
    if wanted is False or rank_zero_only.rank:  # type: ignore[attr-defined]
        return
    train = samples["train"]
    for role, other in samples.items():
        if role not in ("val", "test"):
            continue
        both = np.intersect1d(train.sizes, other.sizes)
        alike = [np.flatnonzero(np.isin(each.sizes, both[both > 0])) for each in (train, other)]
        size = sum(int(one.sizes[rows].sum()) for one, rows in zip((train, other), alike, strict=True))
        if size > MOST_BYTES and not wanted:
            rank_zero_info(
                f"Whether train and {role} share samples is not looked for, as {size / 2**30:.0f} GiB would be read: "
                "--data.find_duplicates=true does."
            )
            continue
        ours, theirs = (one.read(rows) for one, rows in zip((train, other), alike, strict=True))
        shared = theirs.filter(pc.is_in(theirs, value_set=ours, skip_nulls=True))
        if len(shared):
            rank_zero_info(f"{len(shared)} of {other.count} {unit}s in {role} are in train too, by their content.")


def _digest(cell: dict[str, bytes | str | None] | None) -> bytes | None:
    """Of an image's bytes; None where they are not at hand, or cannot be read, which who reads the sample is told."""
    content, path = (cell or {}).get("bytes"), (cell or {}).get("path")
    if isinstance(path, str) and content is None:
        with contextlib.suppress(OSError):
            content = Path(path).read_bytes()
    return hashlib.blake2b(content, digest_size=16).digest() if isinstance(content, bytes) else None
