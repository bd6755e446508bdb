"""The calls of a model's modules, watched by hooks while its own forward runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layersim.tapping.layout import tensors


@dataclass(frozen=True)
class Call:
    """One call of a module that is given a tensor and gives one: of several, the first."""

    path: str
    module: nn.Module
    given: Tensor
    gave: Tensor
    start: int
    """When it began and ended, counted in beginnings and ends: a call inside of another lies between its two."""
    end: int


@contextmanager
def hooked(
    modules: Iterable[nn.Module], *, before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None
) -> Iterator[None]:
    """In here `before` is called as each module is, with it, its arguments and keywords; `after` too with what it gave.

    What they return, unless None, takes the place of the arguments, or of what it gave.
    """
    with ExitStack() as hooks:
        for module in modules:
            if before is not None:
                hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            if after is not None:
                hooks.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield


@contextmanager
def recorded(modules: Mapping[str, nn.Module], keep: Callable[[Tensor], Tensor]) -> Iterator[list[Call]]:
    """While a model runs in here, notes the calls of these modules, by their paths, in the order of their ends; `keep`
    says what of a tensor."""
    paths = {module: path for path, module in modules.items()}
    calls: list[Call] = []
    open_calls: list[tuple[nn.Module, int, Tensor | None]] = []
    time = 0

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal time
        time += 1
        given = first_tensor([*args, *kwargs.values()])
        open_calls.append((module, time, None if given is None else keep(given)))

    def end(module: nn.Module, args: object, kwargs: object, output: Any) -> None:
        nonlocal time
        time += 1
        _, start, given = open_calls.pop()
        gave = first_tensor(output)
        if given is not None and gave is not None:
            calls.append(Call(paths[module], module, given, keep(gave), start, time))

    with hooked(paths, before=begin, after=end):
        yield calls


@contextmanager
def watched(
    blocks: Iterable[nn.Module], refiner: nn.Module | None, take: Callable[[Tensor, bool], None]
) -> Iterator[None]:
    """While the model runs in here, hands what each block puts out to `take`, and whether it refines the one before."""

    def handing(refines: bool) -> Callable[..., None]:
        def after(module: nn.Module, args: object, kwargs: object, output: Any) -> None:
            take(output if isinstance(output, Tensor) else output[0], refines)

        return after

    with hooked(blocks, after=handing(False)), hooked([] if refiner is None else [refiner], after=handing(True)):
        yield


@torch.no_grad()
def last_output(blocks: Iterable[nn.Module], run: Callable[[], object]) -> Tensor | None:
    """What the last call of the blocks gave while `run` ran; None where that fails, whatever it raises."""
    with recorded({str(place): block for place, block in enumerate(blocks)}, keep=Tensor.clone) as calls:
        try:
            run()
        except Exception:  # T5's base model wants to be given what its decoder reads
            return None
    return calls[-1].gave


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in what a module is given or gives; None where there is none."""
    return next((found for found in tensors(value) if isinstance(found, Tensor)), None)
