"""Files that are whole or absent: written beside their final name, brought to the disk, renamed."""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A hidden file beside `path` to write, which gets that name once it is whole and on the disk.

    Whoever looks at `path` meanwhile, or after a kill at any instant, sees what stood there before or the new file. If
    anything is raised in here the hidden file is taken away; what a killed process left in the folder is cleared first.
    """
    clear_leftovers(path.parent, ".*.part")
    part = hidden_beside(path, "part")
    part.touch(exist_ok=False)
    try:
        with locked(part):
            yield part
            bring_to_disk(part)
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    bring_to_disk(path.parent)


def hidden_beside(path: Path, suffix: str) -> Path:
    """A name that nobody else has, `.<name>.<8 digits>.<suffix>`, in the same folder, so that it can be renamed."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{suffix}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds a file or folder that is being written, so that no other process takes it for a leftover.

    Gives whether it could be had: not where a living process has it, or where the file system knows no locks.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # over a network a lock needs to write
    try:
        held = False
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        yield held
    finally:
        os.close(descriptor)


def clear_leftovers(folder: Path, pattern: str) -> None:
    """Removes the files and folders of this pattern that a killed process left, as far as they may be removed."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError), locked(path) as left:
            if left:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def bring_to_disk(path: Path) -> None:
    """Waits until a file, or a folder's names, would outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
