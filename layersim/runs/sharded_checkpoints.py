"""Checkpoints of a sharded model: a folder to which each process has written its part; whole or absent, and checked
before it is read.

torch.distributed.checkpoint writes `__<rank>_<n>.distcp` and `.metadata`, Lightning `meta.pt`; ours is `sha256.json`.
"""

import hashlib
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.strategies.model_parallel import _load_raw_module_state
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.optim import Optimizer

from layersim.errors import UserError
from layersim.evaluation import everywhere
from layersim.writing import bring_to_disk, clear_leftovers, hidden_beside

_SUMS, _META, _PARTS = "sha256.json", "meta.pt", ".metadata"
_MODULES = (
    *("torch", "torch.serialization", "torch.distributed.checkpoint.metadata", "pathlib", "collections"),
    "torch.distributed.checkpoint.filesystem",
)
"""Whose types `.metadata` is made of."""


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
            (part / _SUMS).write_text(json.dumps({name: each for one in everyones for name, each in one.items()}))
            for file in part.iterdir():
                bring_to_disk(file)
            before = hidden_beside(path, "part")
            if path.exists():
                path.rename(before)
            part.rename(path)
            clear_leftovers(path.parent, before.name)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        from layersim.runs.whole_checkpoints import reading

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
    """A whole optimizer's state with its parameters' names for their numbers, whose order is that of its groups.

    Lightning takes it for that of the model, in which it is not where there are several groups.

    Raises:
        UserError: the state is of other groups.
    """
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


def is_whole_folder(path: Path) -> bool | None:
    """Whether a folder's files are what was written, by their checksums; None where it has none."""
    if not (path / _SUMS).is_file():
        return None if (path / _META).is_file() and (path / _PARTS).is_file() else False
    sums = json.loads((path / _SUMS).read_text())
    return all((path / name).is_file() and _sum(path / name) == digest for name, digest in sums.items())


def read_folder(path: Path, *, shapes_only: bool) -> dict[str, Any]:
    """A folder's contents as a checkpoint of one file has them, but for the optimizers' states, which stay there.

    Args:
        path: of the folder.
        shapes_only: give weights without their values, on torch's device `meta`.
    """
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
        found = super().find_class(module, name) if module in _MODULES else None
        if isinstance(found, type | torch.dtype) or name == "_get_layout":
            return found
        raise pickle.UnpicklingError(f"{_PARTS} names {module}.{name}")


def _parts(path: Path) -> Metadata:
    with (path / _PARTS).open("rb") as file:
        parts: Metadata = _Plain(file).load()
    return parts


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
