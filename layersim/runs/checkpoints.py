"""Checkpoints, looked at before anything is trained on them."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from layersim.errors import UserError
from layersim.runs.whole_checkpoints import read_folder, reading

_READ: dict[str, Any] = {"state_dict": None, "hyper_parameters": {}, "layersim": {}}
"""The entries of a checkpoint that the command reads, and what stands for one that is not there."""


def read_checkpoint(path: str | Path, *, shapes_only: bool = False) -> dict[str, Any]:
    """The contents of a checkpoint that Lightning wrote, plain values and tensors only: a file's tensors are mapped,
    not read; of a sharded model's folder all is read but the optimizers' states, and the weights' values where
    `shapes_only`."""
    if not Path(path).exists() or (Path(path).is_dir() and Path(path).suffix != ".ckpt"):
        raise UserError(f"There is no checkpoint {path}. Give the path of a .ckpt file as --ckpt_path.")
    with reading(Path(path)):
        checkpoint: dict[str, Any] = (
            read_folder(Path(path), shapes_only=shapes_only)
            if Path(path).is_dir()
            else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        )
    for entry, absent in _READ.items():
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(entry, absent), dict):
            raise UserError(
                f"{path} is not a Lightning checkpoint: it holds no {entry}. Give one that `fit` has written."
            )
    return checkpoint


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`: of the last validation, or of the end of an epoch that had none behind its last step.

    Lightning's `save_last` copies the best so far, and where a training does not validate at the end of each epoch, it
    saves nothing of what comes after its last validation.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:  # else the epoch's end follows, and is saved
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_on_train_epoch_end = True
        super().on_train_epoch_end(trainer, pl_module)
        self._save_on_train_epoch_end = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        ends = [call.swa_end for call in found if isinstance(call, StochasticWeightAveraging)]
        if ends and trainer.current_epoch > min(ends) and self.best_model_path and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.best_model_path)  # whose weights have been put in the model's place
            rank_zero_info(
                f"{self.best_model_path} holds StochasticWeightAveraging's weights, and what was measured is of those "
                "before: `layersim validate` measures them."
            )


def class_names_of(checkpoint: dict[str, Any]) -> list[str] | None:
    """The names that the data module of the training, whichever it was, has left in its checkpoint."""
    states = (entry for entry in checkpoint.values() if isinstance(entry, dict))
    return next((state["class_names"] for state in states if "class_names" in state), None)


def check_complete(checkpoint: dict[str, Any], path: str | Path, *, resume: bool, sharded: bool = False) -> None:
    """Raises a UserError where Lightning cannot take what `read_checkpoint` read as one of its own, or, to resume,
    training cannot go on from it; `sharded` tells whether the model's parameters are spread over processes."""
    if resume and not sharded and Path(path).is_dir():
        raise UserError(
            f"{path} is a sharded model's, whose training goes on with --trainer.strategy.class_path="
            "lightning.pytorch.strategies.ModelParallelStrategy, on any number of processes."
        )
    here, wrote = version("lightning"), checkpoint.get("pytorch-lightning_version")
    if str(wrote).partition(".")[0] != here.partition(".")[0]:
        told = "does not tell which Lightning wrote it" if wrote is None else f"was written by Lightning {wrote}"
        raise UserError(
            f"{path} {told}, and Lightning {here} cannot read it. Give a checkpoint that `fit` has written, or export "
            "its weights (`layersim export`)."
        )
    if resume and (lacking := _lacking(checkpoint)):
        raise UserError(
            f"Training cannot go on from {path}: it lacks {', '.join(lacking)}, as where ModelCheckpoint's "
            "save_weights_only is set. Give a checkpoint that `fit` has saved whole."
        )


def _lacking(checkpoint: dict[str, Any]) -> list[str]:
    """What a training's state consists of and this one has not, or not as Lightning writes it."""
    optimizers, loops = checkpoint.get("optimizer_states"), checkpoint.get("loops")
    there = {
        "optimizer_states": isinstance(optimizers, list)
        and bool(optimizers)
        and all(isinstance(state, dict) and {"state", "param_groups"} <= state.keys() for state in optimizers),
        "lr_schedulers": isinstance(checkpoint.get("lr_schedulers"), list),
        "callbacks": isinstance(checkpoint.get("callbacks"), dict),
        "loops": isinstance(loops, dict) and "fit_loop" in loops,
        "epoch": isinstance(checkpoint.get("epoch"), int),
        "global_step": isinstance(checkpoint.get("global_step"), int),
    }
    return [entry for entry, is_there in there.items() if not is_there]


def check_fits(state: dict[str, Tensor], module: nn.Module, path: str | Path) -> None:
    """Refuses weights that are missing, left over or of another shape, the first few named, and those that are no
    numbers."""
    own = module.state_dict()
    shapes = [
        f"{name} is {_shape(state[name])} there, {_shape(own[name])} here"
        for name in own
        if name in state and _shape(state[name]) != _shape(own[name])
    ]
    missing = [f"{name} is missing" for name in own if name not in state]
    extra = [f"{name} has no place in the model" for name in state if name not in own]
    if not (problems := shapes + missing + extra):
        return _check_finite({name: state[name] for name, _ in module.named_parameters() if name in state}, path)
    shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
    hint = (
        "number of classes (--model.backbone.init_args.num_classes)"
        if shapes and not missing and not extra and all("classifier" in name or "head" in name for name in shapes)
        else "objective (--model.objective)"
        if all(problem.startswith("objective.") for problem in problems)
        else "backbone and head (--model.backbone, --model.head)"
    )
    raise UserError(f"The checkpoint {path} is of another model: {shown}. Use the {hint} it was trained with.")


def _check_finite(parameters: dict[str, Tensor], path: str | Path) -> None:
    for name, values in parameters.items():
        if not values.is_meta and (broken := int((~values.isfinite()).sum())):
            raise UserError(
                f"The checkpoint {path} is of a training that went wrong: {name} has {broken} of {values.numel()} "
                "values that are NaN or infinite. Take an earlier checkpoint (--ckpt_path)."
            )


def _shape(found: object) -> str:
    if not isinstance(found, Tensor):
        return f"no tensor ({type(found).__name__})"
    return " × ".join(map(str, found.shape)) or "a number"
