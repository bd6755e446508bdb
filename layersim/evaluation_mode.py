"""Running modules over data outside of a trainer."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_NUMBERS = ("index", "position")
"""Entries of a batch that stay on the host, as in training."""


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """In here the modules are in evaluation mode; afterwards all their parts are in the mode they were in.

    Part by part, since a head and a backbone share some, and a model in training may hold parts that are not.
    """
    modes = {part: part.training for module in modules for part in module.modules()}
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def on_device_of(module: nn.Module, batches: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The batches, their tensors on the module's device."""
    device = next(module.parameters()).device
    for batch in batches:
        yield {
            key: value.to(device) if isinstance(value, Tensor) and key not in _NUMBERS else value
            for key, value in batch.items()
        }
