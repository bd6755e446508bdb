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
from torchmetrics.utilities import dim_zero_cat, dim_zero_sum

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

    def offer(self) -> Any:
        """What all processes must know of this one before states can be joined; None on all where there is nothing."""
        return None

    def agree(self, offers: list[Any]) -> None:
        """Makes the state one that can be joined, by what all processes offered."""


@torch.no_grad()
def join(metrics: Sequence[Metric], group: Any = None) -> None:
    """Replaces the states of all metrics by those of all processes together: five collectives, whatever their number,
    and one more for each dtype of what is summed.

    As torchmetrics would, metric by metric and state by state, in two or three collectives each, but for three things.
    A process without any batch, which knows neither shape nor dtype of what others have in a list, takes part with
    nothing; a list that is joined stays one; and of a list that is summed, each tensor is, with its counterparts. Each
    process gives the same metrics in the same order.
    """
    metrics = [metric for metric in metrics if metric._reductions]
    offers = _everyones([metric.offer() if isinstance(metric, LayerMetric) else None for metric in metrics], group)
    for metric, offered in zip(metrics, zip(*offers, strict=True), strict=True):
        if isinstance(metric, LayerMetric) and offered[0] is not None:
            metric.agree(list(offered))
    states = [(metric, name, metric._reductions[name]) for metric in metrics for name in metric._reductions]
    own = [_parts(metric, name) for metric, name, _ in states]
    forms = _everyones([[(tuple(part.shape), part.dtype, part.is_cpu) for part in parts] for parts in own], group)
    summed = [place for place, (_, _, reduction) in enumerate(states) if reduction is dim_zero_sum]
    addends = {place: _alike(own[place], [form[place] for form in forms], states[place][0].device) for place in summed}
    _add_up([tensor for place in summed for tensor in addends[place]], group)
    for place in summed:
        own[place] = []
        for form in forms:
            form[place] = []
    packed = _gathered([part for parts in own for part in parts], max(map(_size, forms)), group)
    everyones = [_unpacked(buffer, form) for buffer, form in zip(packed, forms, strict=True)]
    for place, (metric, name, reduction) in enumerate(states):
        one = isinstance(getattr(metric, name), Tensor)
        if place in addends:
            setattr(metric, name, addends[place][0] if one else addends[place])
            continue
        found = [part.to("cpu" if host else metric.device) for parts in everyones for part, host in parts[place]]
        if one:
            found = torch.stack(found)  # type: ignore[assignment]
        elif reduction is dim_zero_cat:
            found, reduction = [torch.cat(found)] if found else [], None
        setattr(metric, name, reduction(found) if callable(reduction) and len(found) else found)


def _parts(metric: Metric, name: str) -> list[Tensor]:
    state = getattr(metric, name)
    if isinstance(state, Tensor):
        return [state]
    return [dim_zero_cat(state)] if metric._reductions[name] is dim_zero_cat and len(state) > 1 else list(state)


def _everyones(own: Any, group: Any) -> list[Any]:
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, own, group=group)
    return every


def _alike(own: list[Tensor], forms: "_Forms", device: torch.device) -> list[Tensor]:
    """Addends of the shapes that any process has: this one's, or zeros where it has none yet."""
    known = max(forms, key=len)
    return own or [torch.zeros(shape, dtype=dtype, device="cpu" if host else device) for shape, dtype, host in known]


def _add_up(tensors: list[Tensor], group: Any) -> None:
    """Sums each tensor over the processes, in place."""
    device = _meeting_place(group)
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        those = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1).to(device) for tensor in those])
        dist.all_reduce(flat, group=group)
        for tensor, total in zip(those, torch.split(flat, [tensor.numel() for tensor in those]), strict=True):
            tensor.copy_(total.view(tensor.shape))


def _meeting_place(group: Any) -> torch.device:
    """Where tensors meet: NCCL takes no host memory, and so they travel by the GPU."""
    by_gpu = "nccl" in str(dist.get_backend(group))
    return torch.device("cuda", torch.cuda.current_device()) if by_gpu else torch.device("cpu")


_Forms = list[list[tuple[tuple[int, ...], torch.dtype, bool]]]
"""Of several states each the shapes and dtypes of its tensors, and whether they are on the host."""


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return -(-prod(shape) * dtype.itemsize // _ALIGNED) * _ALIGNED


def _size(forms: _Forms) -> int:
    return sum(_bytes(shape, dtype) for parts in forms for shape, dtype, _ in parts)


def _gathered(tensors: list[Tensor], size: int, group: Any) -> list[Tensor]:
    """What every process packed, in `size` bytes."""
    own = torch.empty(size, dtype=torch.uint8, device=_meeting_place(group))
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
