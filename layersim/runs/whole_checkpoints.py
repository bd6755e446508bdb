"""Checkpoints that are whole or absent, and that know when they are damaged.

A checkpoint is a zip archive; its comment, which every reader passes over, holds the SHA-256 of all that stands before
it. So the checksum comes and goes with the file, wherever that is copied or linked.
"""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from layersim.errors import UserError, reason
from layersim.runs.sharded_checkpoints import is_whole_folder, read_folder
from layersim.writing import written_whole

_MARK = b"sha256="
_COMMENT = len(_MARK) + 64
_COMMENT_LENGTH = _COMMENT.to_bytes(2, "little")
"""The last two bytes of an archive before its comment."""


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way to write and read checkpoints, made safe: `Trainer(plugins=[WholeCheckpoints()])`.

    A kill at any instant of a save leaves the old file or the new one. A load refuses a file whose content is not what
    was written. Paths with a protocol (`s3://…`) are Lightning's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        archive = io.BytesIO()  # torch hides what the system says when it writes a file itself
        torch.save(checkpoint, archive)
        content = archive.getbuffer()
        content[-2:] = _COMMENT_LENGTH
        if (folder := Path(path).parent) not in self._made:  # one that was made and is gone is not made again
            folder.mkdir(parents=True, exist_ok=True)
            self._made.add(folder)
        with written_whole(Path(path), len(content) + _COMMENT) as part, part.open("wb") as file:
            file.write(content)
            file.write(_MARK + hashlib.sha256(content).hexdigest().encode())

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        if "://" in str(path):
            return dict(super().load_checkpoint(path, *args, **options))
        with reading(Path(path)):
            if Path(path).is_dir():
                return read_folder(Path(path), shapes_only=False)
            return dict(super().load_checkpoint(path, *args, **options))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around whatever reads a checkpoint, file or folder. Where that has no checksum to tell by, a line says so, once.

    Raises:
        UserError: its content is not what was written, or cannot be read; the newest whole checkpoint beside it is
            named.
    """
    if (whole := is_whole(path)) is None:
        _tell_no_checksum(path.resolve())
    elif not whole:
        what = "its checksum is of another content" if path.is_file() else "files in it are missing or changed"
        raise _unusable(path, f"is damaged: {what}")
    try:
        yield
    except Exception as error:  # unpickling raises whatever the damage suggests
        why = f"is not a readable checkpoint (cut short, corrupt, or unsafe to load): {reason(error).rstrip('.')}"
        raise _unusable(path, why) from error


def is_whole(path: Path) -> bool | None:
    """Whether a file's checksum, or those of a folder, are those of the content; None where it has none."""
    if path.is_dir():
        return is_whole_folder(path)
    with path.open("rb") as file:
        length = max(file.seek(0, io.SEEK_END) - _COMMENT, 0)
        file.seek(max(length - 2, 0))
        before, mark, digest = file.read(2), file.read(len(_MARK)), file.read()
        if mark != _MARK and before != _COMMENT_LENGTH:  # one flipped bit changes one of them alone
            return None
        file.seek(0)
        content = hashlib.sha256()
        while length and (chunk := file.read(min(length, 1 << 20))):
            content.update(chunk)
            length -= len(chunk)
    return mark == _MARK and digest == content.hexdigest().encode()


def newest_whole(folder: Path, *, other_than: Path | None = None) -> Path | None:
    """The checkpoint in a folder that was written last, of those whose checksum is right; None where there is none."""
    there = [path for path in folder.glob("*.ckpt") if path != other_than and path.exists()]
    newest_first = sorted(there, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return next((path for path in newest_first if is_whole(path)), None)


def _unusable(path: Path, why: str) -> UserError:
    """The error on a checkpoint that cannot be read: why, and which one can."""
    other = newest_whole(path.parent, other_than=path)
    remedy = f"The newest whole checkpoint beside it is {other}: give that" if other else "No other beside it is whole"
    return UserError(f"{path} {why}. {remedy} (--ckpt_path).")


@cache
def _tell_no_checksum(path: Path) -> None:
    rank_zero_info(f"{path} has no checksum to tell whether it is whole; it is taken as it is.")
