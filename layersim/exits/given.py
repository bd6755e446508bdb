"""What people give the exits, as tensors; a UserError says of what cannot be read what it is, and what was expected.

Letters: L layers, N samples, T tokens, C classes.
"""

from collections.abc import Mapping, Sequence, Set
from math import inf
from typing import Any

import torch
from torch import Tensor

from layersim.backbones.base import Backbone, taken
from layersim.errors import UserError, as_user_error
from layersim.heads import Head
from layersim.labels import WHOLE, as_classes, told
from layersim.outputs import LayerFeatures


def as_targets(head: Head, features: LayerFeatures) -> Tensor:
    """(N,) int64 targets, on the head's device, of (L, N, D) features of all its layers."""
    shape, layers = tuple(features.values.shape), head.num_layers
    if len(shape) != 3 or shape[0] != layers:
        raise UserError(f"Expected (layers, samples, width) features of {layers} layers, but got {shape}.")
    return as_classes(features.targets, shape[1], head.num_classes).to(next(head.parameters()).device)


def as_temperatures(given: Any, layers: int) -> Tensor:
    """(L,) float64, finite and above 0, on the host."""
    with as_user_error("The temperatures cannot be read"):
        found = torch.as_tensor(given, dtype=torch.float64, device="cpu")
    if found.shape != (layers,) or not ((found > 0) & (found < inf)).all():
        raise UserError(f"Expected a positive temperature for each of the {layers} layers, but got {found.tolist()}.")
    return found


def as_names(given: Sequence[str] | Mapping[int, str] | None, classes: int) -> list[str] | None:
    """C names in the order of the classes' numbers; None where None."""
    if given is not None and len(given) != classes:
        raise UserError(f"Expected names of {classes} classes, but got {len(given)}.")
    with as_user_error("The class names cannot be read"):
        names = {int(number): name for number, name in given.items()} if isinstance(given, Mapping) else given
        return None if names is None else [str(names[number]) for number in range(classes)]


def as_tokens(backbone: Backbone, input_ids: Any, attention_mask: Any = None) -> tuple[Tensor, Tensor]:
    """(N, T) int64 tokens of the model's vocabulary and their mask, all 1 where None, on its device; N and T from 1."""
    device = next(backbone.parameters()).device
    with as_user_error("The tokens cannot be read", "Give (texts, tokens) numbers, shorter texts padded."):
        ids = torch.as_tensor(input_ids, device=device)
        mask = torch.ones_like(ids) if attention_mask is None else torch.as_tensor(attention_mask, device=device)
    vocabulary = getattr(backbone, "vocabulary_size", None) or inf
    fits = ids.ndim == 2 and ids.numel() and ids.dtype in WHOLE and mask.shape == ids.shape
    if not fits or not ((ids >= 0) & (ids < vocabulary)).all():
        raise UserError(
            f"Expected (texts, tokens) numbers of the model's vocabulary, 0 … {vocabulary - 1}, one or more, and a "
            f"mask for all of them, but got {told(ids)}, and a mask of {tuple(mask.shape)}."
        )
    return ids.long(), (mask > 0).long()


def as_stops(backbone: Backbone, given: Any) -> set[int]:
    """The tokens, or the one, at which texts end, of the model's vocabulary; none where None."""
    with as_user_error("The stop tokens cannot be read"):
        stops = torch.as_tensor([*(given or ())] if isinstance(given, Set | None) else given)
    vocabulary = getattr(backbone, "vocabulary_size", None) or inf
    if stops.numel() and not (stops.dtype in WHOLE and ((stops >= 0) & (stops < vocabulary)).all()):
        raise UserError(f"stop: expected tokens of the model, 0 … {vocabulary - 1}, but got {stops.tolist()}.")
    return {*stops.flatten().tolist()}


def as_batch(backbone: Backbone, given: Mapping[str, Any]) -> dict[str, Any]:
    """The batch, what the model reads of it on its device, and floats in its precision; all else as it is."""
    usual = ("image",) if backbone.input_size else ("input_ids", "attention_mask")
    own = backbone.tiny_batch or ("image",)
    for key in usual:
        if key in own:
            taken(given, key)
    like, batch = next(backbone.parameters()), dict(given)
    for key in given.keys() & {*own, *usual, "token_type_ids", "position_ids"}:
        with as_user_error(f"The batch's {key} cannot be read"):
            value = torch.as_tensor(given[key])
        batch[key] = value.to(like.device, like.dtype if value.is_floating_point() else None)
    if "image" in batch and not (batch["image"].numel() and batch["image"].is_floating_point()):
        raise UserError(
            f"Expected images as floats, normalised as in training, one or more, but got {told(batch['image'])}. "
            "EarlyExit.load gives a model that takes images as people have them."
        )
    if "input_ids" in batch:
        batch["input_ids"], _ = as_tokens(backbone, batch["input_ids"], batch.get("attention_mask"))
    return batch
