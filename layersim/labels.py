"""The labels that people and their data give, as classes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layersim.errors import UserError, as_user_error

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""The types of whole numbers."""


def as_classes(
    given: Any, samples: int, classes: int, names: Sequence[str] | None = None, *, look: bool = True
) -> Tensor:
    """(N,) int64 classes, 0 … C − 1, of whole numbers in any form or, where the C names of the classes are known, of
    names.

    Raises:
        UserError: they are something else, or not as many as samples. Their bounds are passed over without `look`, as
            on a GPU, which would be waited for.
    """
    labels = [] if given is None else given
    if not isinstance(labels, Tensor):
        with as_user_error("The labels cannot be read"):
            if any(isinstance(label, str) for label in labels):
                numbers = dict(zip(names or (), range(classes), strict=False))
                if odd := [label for label in labels if label not in numbers or len(numbers) < classes]:
                    known = f" or names of classes ({', '.join(numbers)})" if numbers else ""
                    raise UserError(f"Expected labels as integers 0 … {classes - 1}{known}, but got {odd[0]!r}.")
                labels = [numbers[label] for label in labels]
            labels = torch.as_tensor(labels)
    whole = not (labels.is_floating_point() or labels.is_complex())
    fits = given is not None and whole and labels.shape == (samples,)
    if not fits or (look and not ((labels.long() >= 0) & (labels.long() < classes)).all()):
        came = "none" if given is None else told(labels)
        raise UserError(f"Expected a label in 0 … {classes - 1} for each of {samples} samples, but got {came}.")
    return labels.long()


def told(values: Tensor) -> str:
    """What they are, and between which they lie, in words."""
    shown = values if values.is_floating_point() or values.is_complex() else values.long()
    ends = f", {shown.amin()} … {shown.amax()}" if shown.numel() and not shown.is_complex() else ""
    return f"{values.dtype} of shape {tuple(values.shape)}{ends}"
