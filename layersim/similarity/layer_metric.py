"""Metrics that keep the shape of what they compute, and whose states meet in a few collectives, however many."""

from collections.abc import Callable, Sequence
from functools import wraps
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from lightning_utilities import apply_to_collection
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

_ALIGNED = 16  # bytes: where a tensor of any dtype may begin


class _Held:
    """A value that torchmetrics hands on without looking inside."""

    def __init__(self, value: Any) -> None:
        self.value = value


class LayerMetric(Metric):
    """A torchmetrics metric whose `compute` gives (L,) and (L, M) also where they hold one number.

    torchmetrics squeezes such tensors to scalars, and a model of one layer would have no layers.
    """

    def _wrap_compute(self, compute: Callable[[], Any]) -> Callable[[], Any]:
        @wraps(compute)
        def held() -> _Held:
            return _Held(apply_to_collection(compute(), Tensor, torch.clone))  # a state may change later

        cached = super()._wrap_compute(held)
        return wraps(compute)(lambda: cached().value)

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any = None) -> None:
        join([self], process_group or self.process_group)

    def offer(self) -> Tensor | None:
        """What all processes must know of this one before it knows which part of its state has to travel."""
        return None

    def agree(self, offers: list[Tensor]) -> None:
        """Lets go of the part of the state that need not travel, by what all processes offered."""


@torch.no_grad()
def join(metrics: Sequence[Metric], group: Any = None) -> None:
    """Replaces the states of all metrics by those of all processes together: five collectives, whatever their number.

    As torchmetrics would, metric by metric and state by state, in two or three collectives each, but for two things. A
    process without any batch, which knows neither shape nor dtype of what others have in a list, takes part with
    nothing; and a list that is joined stays one. Each process gives the same metrics in the same order.
    """
    metrics = [metric for metric in metrics if metric._reductions]
    offers = _everyones([metric.offer() if isinstance(metric, LayerMetric) else None for metric in metrics], group)
    for metric, offered in zip(metrics, zip(*offers, strict=True), strict=True):
        if isinstance(metric, LayerMetric) and offered[0] is not None:
            metric.agree(list(offered))
    states = [(metric, name) for metric in metrics for name in metric._reductions]
    own = [_parts(metric, name) for metric, name in states]
    forms = _everyones([[(tuple(part.shape), part.dtype, part.is_cpu) for part in parts] for parts in own], group)
    packed = _gathered([part for parts in own for part in parts], max(map(_size, forms)), group)
    del own
    everyones = [iter(_unpacked(buffer, form)) for buffer, form in zip(packed, forms, strict=True)]
    for metric, name in states:
        by_process = [next(parts) for parts in everyones]
        found = [part.to("cpu" if on_host else metric.device) for parts in by_process for part, on_host in parts]
        reduction = metric._reductions[name]
        if isinstance(getattr(metric, name), Tensor):
            stacked = torch.stack(found)
            setattr(metric, name, reduction(stacked) if callable(reduction) else stacked)
        elif reduction is dim_zero_cat:
            setattr(metric, name, [torch.cat(found)] if found else [])
        else:
            setattr(metric, name, reduction(found) if callable(reduction) and found else found)


def _parts(metric: Metric, name: str) -> list[Tensor]:
    state = getattr(metric, name)
    if isinstance(state, Tensor):
        return [state]
    return [dim_zero_cat(state)] if metric._reductions[name] is dim_zero_cat and len(state) > 1 else list(state)


def _everyones(own: Any, group: Any) -> list[Any]:
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, own, group=group)
    return every


_Forms = list[list[tuple[tuple[int, ...], torch.dtype, bool]]]
"""Of each state the shapes and dtypes of its tensors, and whether they are on the host."""


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return -(-prod(shape) * dtype.itemsize // _ALIGNED) * _ALIGNED


def _size(forms: _Forms) -> int:
    return sum(_bytes(shape, dtype) for parts in forms for shape, dtype, _ in parts)


def _gathered(tensors: list[Tensor], size: int, group: Any) -> list[Tensor]:
    """What every process packed, in `size` bytes. NCCL takes no host memory: there all travel by the GPU."""
    by_gpu = "nccl" in str(dist.get_backend(group))
    own = torch.empty(size, dtype=torch.uint8, device=torch.cuda.current_device() if by_gpu else "cpu")
    start = 0
    for tensor in tensors:
        own[start : start + tensor.nbytes] = tensor.contiguous().reshape(-1).view(torch.uint8).to(own.device)
        start += _bytes(tuple(tensor.shape), tensor.dtype)
    packed = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    if size:
        dist.all_gather(packed, own, group=group)
    return packed


def _unpacked(packed: Tensor, forms: _Forms) -> list[list[tuple[Tensor, bool]]]:
    start, states = 0, []
    for parts in forms:
        tensors = []
        for shape, dtype, on_host in parts:
            flat = packed[start : start + prod(shape) * dtype.itemsize]
            tensors.append((flat.view(dtype).view(shape), on_host))
            start += _bytes(shape, dtype)
        states.append(tensors)
    return states
