"""Weights of an image model, taken to another image size or other channels as timm does it. Letters: P patches, D
width."""

from typing import Any

from timm.layers import resample_abs_pos_embed, to_2tuple
from timm.models import adapt_input_conv
from torch import Tensor


def resized(weight: Tensor, shape: tuple[int, ...], was: Any, now: Any) -> Tensor | None:
    """A weight in another shape, None where it is neither a first convolution nor a table of positions.

    A convolution (D, channels, height, width) is folded: one channel gets the sum, more get repeats of the same total.
    Positions (…, prefix + P, D) are resampled bicubically on the grid of patches, as the families' own
    `interpolate_pos_encoding` does it; the class token's and others before it stay. `was` and `now` are the
    configurations of the trained model and of the one wanted.
    """
    if weight.ndim == len(shape) == 4 and weight.shape[0] == shape[0] and weight.shape[2:] == shape[2:]:
        return adapt_input_conv(shape[1], weight, base_chans=weight.shape[1])
    old, new = _grid(was), _grid(now)
    if old is None or new is None or weight.ndim < 2:
        return None
    prefix = weight.shape[-2] - old[0] * old[1]
    if prefix < 0 or shape != (*weight.shape[:-2], prefix + new[0] * new[1], weight.shape[-1]):
        return None
    table = weight.reshape(1, *weight.shape[-2:])
    return resample_abs_pos_embed(table, list(new), list(old), prefix, antialias=False).reshape(shape)


def _grid(config: Any) -> tuple[int, int] | None:
    """Patches in a column and in a row; None where the configuration tells no size."""
    config = getattr(config, "vision_config", config)
    size, patch = (to_2tuple(getattr(config, key, None)) for key in ("image_size", "patch_size"))
    return (size[0] // patch[0], size[1] // patch[1]) if size[0] and patch[0] else None
