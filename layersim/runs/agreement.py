"""What the processes of a run must have alike, compared when they first meet: machines drift apart unseen."""

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

import layersim
from layersim.errors import UserError
from layersim.report.configuration import flat
from layersim.report.environment import environment

_TRAINER = (
    *("max_epochs", "max_steps", "accumulate_grad_batches", "precision", "gradient_clip_val", "val_check_interval"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
)
_DATA = ("batch_size", "eval_batch_size", "drop_last", "seed", "shuffle_buffer")
_SAMPLES = 3  # of a split that are looked into

Facts = Mapping[str, str]
"""By name, what a process has, in a word that can be shown, or as a digest."""


def facts(trainer: Trainer, module: LightningModule) -> dict[str, str]:
    """What this process trains with: packages, code, seed, options, data; no path, as each machine may have its own."""
    found = {f"package {name}": version for name, version in environment().items() if name != "system"}
    found["code of layersim"] = _code()
    found["--seed_everything"] = os.environ.get("PL_GLOBAL_SEED", "none")
    found |= {f"--trainer.{name}": str(getattr(trainer, name)) for name in _TRAINER}
    options = {name: value for name, value in flat(dict(module.hparams)).items() if not name.startswith("backbone.")}
    found |= {f"--model.{name}": str(value) for name, value in options.items() if os.sep not in str(value)}
    found["model"] = _digest(f"{name}{tuple(value.shape)}" for name, value in module.state_dict().items())
    data = getattr(trainer, "datamodule", None)
    found |= {f"--data.{name}": str(getattr(data, name)) for name in _DATA if hasattr(data, name)}
    for role, split in getattr(data, "splits", {}).items():
        found[f"number of {role} samples"] = str(len(split))
        found[f"{role} data"] = _digest(_contents(split))
    return found


def require_agreement(told: Mapping[int, tuple[str, Facts]]) -> None:
    """Whether all processes have told the same.

    Args:
        told: by rank, the machine and its facts.

    Raises:
        UserError: the first that differs from rank 0, and in what.
    """
    host, first = told[0]
    for rank, (where, other) in sorted(told.items()):
        for name in {**first, **other}:
            ours, theirs = first.get(name, "none"), other.get(name, "none")
            if ours != theirs:
                raise UserError(
                    f"the processes of a run must be alike, but rank {rank} on {where} has another {name} than rank 0 "
                    f"on {host}: {theirs}, and {ours}. Install, copy or set it alike on both machines"
                )


@cache
def _code() -> str:
    packages = [layersim, *filter(None, [sys.modules.get("callbacks")])]
    files = (path for package in packages for path in Path(str(package.__file__)).parent.rglob("*.py"))
    return _digest(path.name.encode() + path.read_bytes() for path in sorted(files))


def _contents(split: Any) -> Iterable[bytes | str]:
    """What tells a split from another: its samples' numbers and labels, and a few of them whole."""
    for numbers in (split.index, split.labels):
        yield b"" if numbers is None else np.ascontiguousarray(numbers).tobytes()
    for place in np.linspace(0, len(split) - 1, min(_SAMPLES, len(split)), dtype=int):
        for name, value in sorted(split[int(place)].items()):
            yield name
            yield value.numpy().tobytes() if isinstance(value, Tensor) else np.asarray(value).tobytes()


def _digest(parts: Iterable[bytes | str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:12]
