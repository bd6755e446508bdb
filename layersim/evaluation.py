"""One pass over data in evaluation mode. Letters: L layers, N samples, D width."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

_NUMBERS = ("index", "position")
"""Entries of a batch that stay on the host, as in training."""


class Collector(Protocol):
    """What a pass fills: a metric of `layersim.metrics`, or whatever else has these two methods."""

    def update(self, output: Any, /) -> None:
        """Takes what the module returned for one batch."""

    def compute(self) -> Any:
        """What the pass has come to, on every process."""


def evaluate(
    module: nn.Module,
    loader: Iterable[Mapping[str, Any]],
    *collectors: Collector,
    read: Callable[[Mapping[str, Any]], Any] | None = None,
) -> list[Any]:
    """Runs a module once over data, and gives what each collector computes: `[accuracy, loss] = evaluate(module,
    data.val_dataloader(), LayerAccuracy(12), LayerLoss(12))`.

    The module is in evaluation mode meanwhile, without gradients, on the device where it is; metrics are moved there.
    On several processes each gives its own share of the data, and metrics reduce over them as they always do.

    Args:
        module: called with each batch: a `LayerwiseModule` gives a `LayerOutput`, a `Backbone` `LayerFeatures`.
        loader: batches, their tensors on any device.
        collectors: each is given every output.
        read: what gives the output of a batch, of modules that are parts of `module`, in place of its own call.
    """
    device = next(module.parameters()).device
    for collector in collectors:
        if isinstance(collector, nn.Module):
            collector.to(device)
    with evaluating(module), torch.no_grad():
        for batch in loader:
            if isinstance(batch, Mapping):
                batch = {
                    key: value.to(device) if isinstance(value, Tensor) and key not in _NUMBERS else value
                    for key, value in batch.items()
                }
            output = (read or module)(batch)
            for collector in collectors:
                collector.update(output)
        return [collector.compute() for collector in collectors]


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


_TURNS: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()


@contextmanager
def alone(backbone: Any, *parts: nn.Module) -> Iterator[None]:
    """In here one thread alone reads a backbone's model, whose hooks all threads share, and these parts: in evaluation
    mode, and in inference mode."""
    turn = _TURNS.setdefault(getattr(backbone, "model", backbone), RLock())
    with turn, evaluating(backbone, *parts), torch.inference_mode():
        yield


def processes() -> int:
    """How many there are that work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def reduced(value: Tensor, how: Literal["sum", "min", "max"]) -> Tensor:
    """The sum, least or largest of a tensor over all processes, by one collective: Lightning's `reduce` takes two."""
    if processes() > 1:
        value = value.clone()
        dist.all_reduce(value, op=getattr(dist.ReduceOp, how.upper()))
    return value


def everywhere(parts: list[Any], group: Any = None) -> list[Any]:
    """The parts of every process, or of every one of a group, those of the first one first."""
    if processes() == 1:
        return parts
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, parts, group=group)
    return [part for of_one in gathered for part in of_one]
