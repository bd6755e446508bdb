"""The one line that says what was opened: files, samples of each split, and what was held out, capped or left out."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info


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


def folder(location: Path, files: Mapping[str, Sequence[str]], used: set[str]) -> str:
    """What is read of a folder: its files by kind, and which are not.

    Args:
        location: the folder.
        files: those that belong to each of its splits.
        used: the splits that are read.
    """
    read = [file for split, paths in files.items() if split in used for file in paths]
    known = {file for paths in files.values() for file in paths}
    others, passed = _below(location.resolve())
    left_out = [_kinds(file for file in others if file not in known)]
    left_out += [f"{count} {kind}{'s' * (count > 1 and kind != 'hidden')}" for kind, count in passed.items()]
    left_out += [f"split {split}" for split in files if split not in used]
    return f"{_kinds(read)} in {location}{not_read(left_out)}"


def not_read(parts: Iterable[str]) -> str:
    """«(not read: 2 png files, split test)», without the parts that are empty; nothing where all are."""
    said = ", ".join(part for part in parts if part)
    return f" (not read: {said})" if said else ""


def _below(location: Path) -> tuple[list[str], Counter[str]]:
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
