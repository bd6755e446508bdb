"""What a model's own forward gives its blocks, and which axes of it have a row for each sample, or for each token."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from layersim.backbones.base import Backbone
from layersim.backbones.calls import hooked

Place = tuple[int | str, ...]
"""Where a tensor lies in what a layer's block is given: the layer, then names and indices down to the tensor."""
Axes = dict[Place, int | None]
"""The axis along which each of those tensors has a row for each sample; None where it has none."""


def given_shapes(backbone: Backbone, batch: Mapping[str, Any]) -> dict[Place, torch.Size]:
    """The shape of every tensor that the model's own forward gives its blocks."""
    shapes: dict[Place, torch.Size] = {}
    layer = -1

    def note(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal layer
        layer += 1

        def keep(place: Place, tensor: Tensor) -> Tensor:
            shapes[(layer, *place)] = tensor.shape
            return tensor

        mapped((args, kwargs), keep)

    with hooked(backbone.blocks, before=note):
        backbone.run(batch)
    return shapes


def grown_axes(before: torch.Size, after: torch.Size) -> list[int]:
    """The axes along which a tensor of one shape is longer than that of the other."""
    return [axis for axis in range(len(after)) if before[axis : axis + 1] != after[axis : axis + 1]]


def mapped(value: Any, change: Callable[[Place, Tensor], Tensor], place: Place = ()) -> Any:
    """The same tuples, lists and dictionaries, with other tensors in them."""
    if isinstance(value, Tensor):
        return change(place, value)
    if isinstance(value, dict):
        return {key: mapped(part, change, (*place, key)) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [mapped(part, change, (*place, number)) for number, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
