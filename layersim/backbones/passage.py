"""A batch's way through a model's blocks, watched by hooks while the model's own forward runs.

Letters: N samples, T tokens, D width.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Passage:
    """One batch's way through a model, for those who want to change it between two blocks."""

    run: Callable[[], object]
    """The model's own forward on the batch, through all of its blocks at least."""
    blocks: Iterable[nn.Module]
    """The blocks, whatever number of times the model calls each (ALBERT)."""
    pool: Callable[[Tensor, Tensor | None], Tensor]
    """A block's output for some of the samples, (n, T, D), and their rows of `mask` → their features, (n, D)."""
    samples: Tensor
    """(N, …) what the model mainly is given: images, or the texts' tokens."""
    mask: Tensor | None = None
    """(N, T), 1 where a token is no padding; None for images."""
    refiner: nn.Module | None = None
    """A module that changes what the block before it put out: part of that block."""


@contextmanager
def watched(
    blocks: Iterable[nn.Module], refiner: nn.Module | None, take: Callable[[Tensor, bool], None]
) -> Iterator[None]:
    """While the model runs in here, hands what each block puts out to `take`, and whether it refines the one before."""

    def tokens(output: Any) -> Tensor:
        first: Tensor = output if isinstance(output, Tensor) else output[0]
        return first

    hooks = [block.register_forward_hook(lambda _, __, output: take(tokens(output), False)) for block in blocks]
    if refiner is not None:
        hooks.append(refiner.register_forward_hook(lambda _, __, output: take(tokens(output), True)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
