"""Checkpoints, looked at before anything is trained on them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layersim.errors import UserError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's contents, its tensors mapped from the file, not read; plain values and tensors only.

    Raises:
        UserError: no such file, or one that is cut short, corrupt, or no Lightning checkpoint.
    """
    if not Path(path).is_file():
        raise UserError(f"There is no checkpoint {path}. Give the path of a .ckpt file as --ckpt_path.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # unpickling raises whatever the damage suggests
        raise UserError(
            f"{path} is not a readable checkpoint (cut short, corrupt, or unsafe to load): {error}"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(
            f"{path} is not a Lightning checkpoint: it holds no state_dict. Give one that `fit` has written."
        )
    return checkpoint


def check_fits(state: dict[str, Tensor], module: nn.Module, path: str | Path) -> None:
    """Whether a checkpoint's weights are those of this model, and numbers.

    Raises:
        UserError: weights that are missing, left over or of another shape, the first few named; NaN or infinite ones.
    """
    own = module.state_dict()
    shapes = [
        f"{name} is {_shape(state[name])} there, {_shape(own[name])} here"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    missing = [f"{name} is missing" for name in own if name not in state]
    extra = [f"{name} has no place in the model" for name in state if name not in own]
    if not (problems := shapes + missing + extra):
        return _check_finite({name: state[name] for name, _ in module.named_parameters() if name in state}, path)
    shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
    hint = (
        "number of classes (--model.backbone.init_args.num_classes)"
        if shapes and not missing and not extra and all("classifier" in name or "head" in name for name in shapes)
        else "backbone and head (--model.backbone, --model.head)"
    )
    raise UserError(f"The checkpoint {path} is of another model: {shown}. Use the {hint} it was trained with.")


def _check_finite(parameters: dict[str, Tensor], path: str | Path) -> None:
    for name, values in parameters.items():
        if broken := int((~values.isfinite()).sum()):
            raise UserError(
                f"The checkpoint {path} is of a training that went wrong: {name} has {broken} of {values.numel()} "
                "values that are NaN or infinite. Take an earlier checkpoint (--ckpt_path)."
            )


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a number"
