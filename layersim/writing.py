"""Files that are whole or absent: written beside their final name, brought to the disk, renamed."""

import contextlib
import errno
import fcntl
import os
import resource
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

REFUSED = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE),
    *(errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT),
}
"""What the system says when a disk is full or a quota reached, may not be written, breaks or is gone, and when too many
files are open: never the program's fault."""


@contextlib.contextmanager
def named(path: Path, size: int | None = None) -> Iterator[None]:
    """Around the writing of a file that needs `size` bytes: an OSError in here names it, and says what is lacking where
    the system tells."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise  # what no system says
        error.filename, error.filename2 = str(path), None
        needed = "" if size is None else f"{size:,} bytes are needed, "
        if error.strerror != os.strerror(error.errno):
            raise  # somebody has told more already
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                error.strerror += f" ({needed}{shutil.disk_usage(path.parent).free:,} are free)"
        elif error.errno == errno.EFBIG and (most := resource.getrlimit(resource.RLIMIT_FSIZE)[0]) >= 0:
            error.strerror += f" ({needed}a file may have {most:,}: ulimit -f)"
        raise


def refusal(error: OSError) -> str:
    """What the system refuses, in words."""
    where = "a file" if error.filename is None else error.filename
    return f"The system refuses {where}: {error.strerror or error}"


@contextlib.contextmanager
def written_whole(path: Path, size: int | None = None) -> Iterator[Path]:
    """A hidden file beside `path` to write, which gets that name once it is whole and on the disk.

    Whoever looks at `path` meanwhile, or after a kill at any instant, sees what stood there before or the new file. If
    anything is raised in here the hidden file is taken away; what a killed process left in the folder is cleared first.

    Args:
        path: of the file.
        size: how many bytes it needs, where that is known, for the error where there is no room.
    """
    with named(path, size):
        clear_leftovers(path.parent, ".*.part")
        part = hidden_beside(path, "part")
        try:
            part.touch(exist_ok=False)
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
