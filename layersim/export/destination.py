"""Where an export is written: a folder that has its name only once all of it is there."""

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layersim.errors import UserError, user_path
from layersim.writing import bring_to_disk, clear_leftovers, hidden_beside, locked

RECORD_FILE = "layersim.json"
"""What was exported; also what tells an export's folder from any other."""


def check_destination(to: str | Path, overwrite: bool) -> Path:
    """Tells early, without writing anything, that nothing can be exported to `to`; gives its path, `~` being the home.

    Raises:
        UserError: it exists and `overwrite` is false; it exists and is no export, which is never replaced; or its
            parent is no folder or may not be written.
    """
    to = user_path(to)
    if not to.name or to.name == "..":
        raise UserError(f"Expected the path of a new folder, but got {to}. Change --to.")
    if to.exists() or to.is_symlink():
        if not overwrite:
            raise UserError(f"{to} exists and is kept. Choose another --to, or add --overwrite.")
        if to.is_symlink() or not (to / RECORD_FILE).is_file():
            raise UserError(f"{to} is no export ({RECORD_FILE} is not in it), so it is kept. Choose another --to.")
    parent = to.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{to} cannot be made: {parent} is no folder that may be written. Change --to.")
    return to


@contextmanager
def destination(to: str | Path, record: dict[str, object], *, overwrite: bool = False) -> Iterator[Path]:
    """A hidden folder beside `to` to write into, which gets that name when all has been written and is on the disk.

    If anything is raised in here the folder is taken away, and what stood at `to` stays. A process that is killed
    leaves at most the hidden folder behind, named `.<name>.<8 digits>.partial`, which the next export of that name
    clears. Where an export is replaced, the old one is moved aside, and back if the new one cannot take its place.

    Args:
        to: the folder to make; its parents are made too.
        record: what is written into it as `layersim.json`.
        overwrite: replace an export that stands there.

    Raises:
        UserError: as `check_destination`.
    """
    to = check_destination(to, overwrite).absolute()
    to.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(to.parent, f".{glob.escape(to.name)}.*.partial")
    partial, old = hidden_beside(to, "partial"), hidden_beside(to, "old")
    partial.mkdir()
    with locked(partial):
        try:
            (partial / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            yield partial
            mode = partial.stat().st_mode & 0o777  # by the user's umask: some libraries write for their owner alone
            for path in [*partial.rglob("*"), partial]:
                path.chmod(mode if path.is_dir() else mode & 0o666)
                bring_to_disk(path)
            check_destination(to, overwrite)  # while this one was written, another may have been
            if to.exists():
                to.rename(old)
            partial.rename(to)
        finally:
            if old.exists() and not to.exists():
                old.rename(to)
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    bring_to_disk(to.parent)
