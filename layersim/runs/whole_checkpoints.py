"""Checkpoints that are whole or absent, and that know when they are damaged.

A checkpoint is a zip archive; its comment, which every reader passes over, holds the SHA-256 of all that stands before
it. So the checksum comes and goes with the file, wherever that is copied or linked. That of a sharded model is a folder
to which each process has written its part: torch.distributed.checkpoint `__<rank>_<n>.distcp` and `.metadata`,
Lightning `meta.pt`; ours is `sha256.json`.
"""

import contextlib
import hashlib
import io
import json
import pickle
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.strategies.model_parallel import _load_raw_module_state
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.optim import Optimizer

from layersim.errors import UserError, reason
from layersim.evaluation import everywhere
from layersim.writing import bring_to_disk, clear_leftovers, hidden_beside, written_whole

_MARK = b"sha256="
_COMMENT = len(_MARK) + 64
_COMMENT_LENGTH = _COMMENT.to_bytes(2, "little")
"""The last two bytes of an archive before its comment."""
_ARCHIVE, _END = b"PK\5\6", 22
"""How the record begins that ends a zip archive, and its bytes before the comment, whose length are the last two."""
_SUMS, _META, _PARTS = "sha256.json", "meta.pt", ".metadata"
_MODULES = (
    *("torch", "torch.serialization", "torch.distributed.checkpoint.metadata", "pathlib", "collections"),
    "torch.distributed.checkpoint.filesystem",
)
"""Whose types `.metadata` is made of."""


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


class WholeShards(ModelParallelStrategy):
    """Lightning's strategy for sharded models, made safe: `Trainer(strategy=WholeShards())`.

    By default all processes share one model's parameters, and each reads samples of its own. A kill at any instant of a
    save leaves no half of a checkpoint under its name. A load refuses one whose content is not what was written.
    """

    def setup_environment(self) -> None:
        if self._data_parallel_size == self._tensor_parallel_size == "auto":  # which would split a machine's tensors
            self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path, part = self.broadcast((Path(filepath), hidden_beside(Path(filepath), "part")))
        if self.is_global_zero:
            clear_leftovers(path.parent, f".{path.name}.*.part")
        super().save_checkpoint(checkpoint, part, storage_options)
        own = [part / _META, part / _PARTS] if self.is_global_zero else []
        sums = {file.name: _sum(file) for file in [*own, *part.glob(f"__{self.global_rank}_*")]}
        everyones = everywhere([sums])
        if self.is_global_zero:
            (part / _SUMS).write_text(
                json.dumps({name: each for one in everyones for name, each in one.items()}), encoding="utf-8"
            )
            for file in part.iterdir():
                bring_to_disk(file)
            before = hidden_beside(path, "part")
            if path.exists():
                path.rename(before)
            part.rename(path)
            clear_leftovers(path.parent, before.name)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        with reading(path):
            if path.is_dir():
                _parts(path)  # torch would unpickle whatever stands there
                return super().load_checkpoint(path, weights_only)
            checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
        assert self.model is not None
        assert self.lightning_module is not None
        strict = self.lightning_module.strict_loading
        _load_raw_module_state(checkpoint.pop("state_dict"), self.model, strict=strict)
        whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=strict)
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            set_optimizer_state_dict(self.model, optimizer, _by_names(state, optimizer, self.model), options=whole)
        return checkpoint


def _by_names(state: dict[str, Any], optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """A whole optimizer's state with its parameters' names for their numbers, whose order is that of its groups:
    Lightning takes it for that of the model, in which it is not where there are several groups."""
    groups = state["param_groups"]
    stored, given = ([len(group["params"]) for group in each] for each in (groups, optimizer.param_groups))
    if stored != given:
        raise UserError(
            f"The checkpoint's optimizer has groups of {stored} parameters, but {given} are given. Resume with the "
            "--model.parameter_groups it was trained with."
        )
    names = {parameter: name for name, parameter in model.named_parameters()}
    numbers = [number for group in groups for number in group["params"]]
    own = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    known = dict(zip(numbers, own, strict=True))
    return {
        "state": {known[number]: each for number, each in state["state"].items()},
        "param_groups": [group | {"params": [known[number] for number in group["params"]]} for group in groups],
    }


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around whatever reads a checkpoint, file or folder: where its content is not what was written, or cannot be read,
    a UserError names the newest whole one beside it. Where it has no checksum to tell by, a line says so, once."""
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
        if not (path / _SUMS).is_file():
            return None if (path / _META).is_file() and (path / _PARTS).is_file() else False
        try:
            sums = dict(json.loads((path / _SUMS).read_bytes()))
        except (ValueError, TypeError, RecursionError):
            return False
        parts = {_META, _PARTS, *(part.name for part in path.glob("__*"))}
        same = ((path / name).is_file() and _sum(path / name) == digest for name, digest in sums.items())
        return parts <= sums.keys() and all(same)
    with path.open("rb") as file:
        length = max(file.seek(0, io.SEEK_END) - _COMMENT, 0)
        file.seek(max(length - 2, 0))
        before, mark, digest = file.read(2), file.read(len(_MARK)), file.read()
        file.seek(0)
        if mark != _MARK and before != _COMMENT_LENGTH:  # one flipped bit changes one of them alone
            return None if file.read(2) != _ARCHIVE[:2] or _ends_as_it_says(file) else False
        content = hashlib.sha256()
        while length and (chunk := file.read(min(length, 1 << 20))):
            content.update(chunk)
            length -= len(chunk)
    return mark == _MARK and digest == content.hexdigest().encode()


def _ends_as_it_says(archive: BinaryIO) -> bool:
    """Whether a zip archive's comment is as long as it says; a checksum that was cut or written over left readable
    all that stands before it."""
    archive.seek(max(archive.seek(0, io.SEEK_END) - (1 << 16) - _END, 0))
    end = archive.read()
    at = end.rfind(_ARCHIVE)
    return at < 0 or at + _END + int.from_bytes(end[at + _END - 2 : at + _END], "little") == len(end)


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


def read_folder(path: Path, *, shapes_only: bool) -> dict[str, Any]:
    """A folder's contents as a checkpoint of one file has them, but for the optimizers' states, which stay there, and
    the weights' values where `shapes_only`: they are on torch's device `meta` then."""
    parts = _parts(path).state_dict_metadata
    device = "meta" if shapes_only else "cpu"
    weights = {
        name: torch.empty(part.size, dtype=part.properties.dtype, device=device)
        for name, part in parts.items()
        if name.startswith("state_dict.") and isinstance(part, TensorStorageMetadata)
    }
    if not shapes_only:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as is meant
            load(weights, checkpoint_id=path, no_dist=True)
    checkpoint: dict[str, Any] = torch.load(path / _META, map_location="cpu", weights_only=True)
    checkpoint["state_dict"] = {name.removeprefix("state_dict."): values for name, values in weights.items()}
    optimizers = {name.partition(".")[0] for name in parts if name.startswith("optimizer_")}
    checkpoint["optimizer_states"] = [{"state": {}, "param_groups": []} for _ in optimizers]
    return checkpoint


class _Plain(pickle.Unpickler):
    """Makes nothing but torch's own records."""

    def find_class(self, module: str, name: str) -> Any:
        module = "pathlib" if module == "pathlib._local" else module  # as Python 3.13 writes it
        found = super().find_class(module, name) if module in _MODULES else None
        if isinstance(found, type | torch.dtype) or name == "_get_layout":
            return found
        raise pickle.UnpicklingError(f"{_PARTS} names {module}.{name}")


def _parts(path: Path) -> Metadata:
    with (path / _PARTS).open("rb") as file:
        return _Plain(file).load()


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
