"""From whatever a module puts out to one vector a sample. Letters: N samples, T tokens, D width."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from layersim.errors import UserError

Reduction = Literal["cls", "mean", "last"]
Pool = Reduction | Callable[[Tensor], Tensor]


def check_pool(pool: Pool) -> None:
    """Raises UserError where there is no such pool."""
    if not callable(pool) and pool not in get_args(Reduction):
        raise UserError(f'pool: expected one of {", ".join(get_args(Reduction))}, or a function, got "{pool}".')


@torch.no_grad()
def pooled_output(output: Any, pool: Pool, layer: str) -> Tensor:
    """(N, D) features, a copy without gradients, of a module's output.

    Args:
        output: a tensor with the samples first, or a tuple, list, mapping or dataclass, whose first tensor is taken.
        pool: "cls": token 0 of (N, T, D); "last": token T − 1; "mean": over the tokens, or over all positions of a
            channels-first map (N, D, H, W). All tokens count, padding too. (N, D) stays as it is. A function is given
            the first tensor, whatever its shape, and returns (N, D).
        layer: the module's name, for errors.

    Raises:
        UserError: no tensor, no floating-point numbers, or a shape that the pool does not fit.
    """
    tensor = _first_tensor(output)
    if tensor is None:
        raise UserError(f"{layer} puts out no tensor but {type(output).__name__}: choose other layers.")
    if not tensor.is_floating_point():
        raise UserError(f"{layer} puts out {tensor.dtype}, no floating-point numbers: choose other layers.")
    features = _pooled(tensor.detach(), pool, layer)
    if features.ndim != 2 or len(features) != len(tensor):
        raise UserError(
            f"{layer}: expected the pool to give ({len(tensor)}, D) from {tuple(tensor.shape)}, got "
            f"{tuple(features.shape)}: change the function that is given as pool."
        )
    return features.clone(memory_format=torch.contiguous_format)  # the model may go on in place; a view keeps it all


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    parts: Any = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, tuple | list):
        parts = output
    elif is_dataclass(output):
        parts = (getattr(output, field.name) for field in fields(output))
    return next((tensor for part in parts if (tensor := _first_tensor(part)) is not None), None)


def _pooled(tensor: Tensor, pool: Pool, layer: str) -> Tensor:
    if callable(pool):
        return pool(tensor)
    if tensor.ndim == 2:
        return tensor
    if tensor.ndim == 3:
        return tensor.mean(1) if pool == "mean" else tensor[:, 0 if pool == "cls" else -1]
    if tensor.ndim > 3 and pool == "mean":
        return tensor.flatten(2).mean(2)
    raise UserError(
        f'{layer} puts out {tuple(tensor.shape)}, which pool="{pool}" does not fit: set pool to "mean" for maps (N, D, '
        "H, W), or to a function that returns (N, D)."
    )
