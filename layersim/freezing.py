"""Parts of a model that a training leaves as they are."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from layersim.errors import UserError
from layersim.heads import TunedLens

if TYPE_CHECKING:
    from layersim.module import LayerwiseModule

PARTS = ("backbone", "head")


def named_parts(freeze: str | Sequence[str] | None, head: str = "") -> tuple[str, ...]:
    """What an option `freeze` names: parts in a list, or separated by commas.

    Args:
        freeze: the option.
        head: the path of the head's class, where it is known before the head is.

    Raises:
        UserError: no such part, or nothing of the model would be left to train.
    """
    named = freeze.split(",") if isinstance(freeze, str) else list(freeze or [])
    if unknown := [name for name in named if name not in PARTS]:
        raise UserError(f"Expected {' or '.join(PARTS)} to freeze, but got {unknown[0]!r}. Change --model.freeze.")
    parts = tuple(part for part in PARTS if part in named)
    if parts == PARTS or ("backbone" in parts and head.rpartition(".")[2] == "SharedHead"):
        raise _nothing_left(parts)
    return parts


def freeze_parts(module: "LayerwiseModule", freeze: str | Sequence[str] | None) -> tuple[str, ...]:
    """Takes the parameters of the parts that are named out of the training, and puts the parts into evaluation mode.

    Raises:
        UserError: no such part, or nothing of the model is left to train.
    """
    parts = named_parts(freeze)
    if parts:
        warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")  # Lightning's, of what was asked for
    for part in parts:
        getattr(module, part).requires_grad_(False).eval()
    if parts and not any(each.requires_grad for part in PARTS for each in getattr(module, part).parameters()):
        raise _nothing_left(parts)
    if isinstance(module.head, TunedLens) and "backbone" not in parts:
        warnings.warn(
            "A tuned lens is of a frozen model, but this one trains: set --model.freeze=backbone.", stacklevel=2
        )
    return parts


def _nothing_left(parts: Sequence[str]) -> UserError:
    return UserError(
        f"With {' and '.join(parts)} frozen nothing of the model is left to train (SharedHead is the backbone's own). "
        "Change --model.freeze, or take a head with parts of its own: TunedLens, LinearProbes or SeparateHeads."
    )
