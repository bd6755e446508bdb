"""Metrics that keep the shape of what they compute, and whose states meet in a few collectives, however many."""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from lightning_utilities import apply_to_collection
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, dim_zero_sum

from layersim.evaluation import everywhere


class LayerMetric(Metric):
    """A torchmetrics metric whose `compute` gives (L,) and (L, M) also where they hold one number.

    torchmetrics squeezes such tensors to scalars, and a model of one layer would have no layers.
    """

    def _wrap_compute(self, compute: Callable[[], Any]) -> Callable[[], Any]:
        @wraps(compute)
        def held() -> SimpleNamespace:  # which torchmetrics hands on without looking inside
            own = apply_to_collection(compute(), Tensor, torch.clone)  # a state may change later
            return SimpleNamespace(value=own)

        cached = super()._wrap_compute(held)
        return wraps(compute)(lambda: cached().value)

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any = None) -> None:
        join([self], process_group or self.process_group)

    def keep_apart(self, *options: object) -> None:
        """Tells by which options an update goes: a `MetricCollection` of torchmetrics updates one alone of the metrics
        whose states have the same names and are alike after the first batch, lists as far as the shorter goes."""
        self.add_state(f"by {options}", [], dist_reduce_fx="cat")

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
    offers = everywhere([[metric.offer() if isinstance(metric, LayerMetric) else None for metric in metrics]], group)
    for metric, offered in zip(metrics, zip(*offers, strict=True), strict=True):
        if isinstance(metric, LayerMetric) and offered[0] is not None:
            metric.agree(list(offered))
    states = [(metric, name, metric._reductions[name]) for metric in metrics for name in metric._reductions]
    own = [_parts(metric, name) for metric, name, _ in states]
    forms = everywhere([[[(tuple(part.shape), part.dtype, part.is_cpu) for part in parts] for parts in own]], group)
    places = [place for place, (_, _, reduction) in enumerate(states) if reduction is dim_zero_sum]
    for place in places:
        metric, name, _ = states[place]
        known = max((form[place] for form in forms), key=len)  # of a process that has seen a batch: others add zeros
        parts = own[place] or [torch.zeros(shape, dtype=dtype, device=metric.device) for shape, dtype, _ in known]
        setattr(metric, name, parts[0] if isinstance(getattr(metric, name), Tensor) else parts)
        own[place] = parts
    _add_up([part for place in places for part in own[place]], group)
    places = [place for place in range(len(states)) if place not in places]
    sent = [part for place in places for part in own[place]]
    every = [*_gathered(sent, [[part for place in places for part in form[place]] for form in forms], group)]
    for place in places:
        metric, name, reduction = states[place]
        hosts = [(parts, host) for parts, form in zip(every, forms, strict=True) for _, _, host in form[place]]
        found: Any = [next(parts).to("cpu" if host else metric.device) for parts, host in hosts]
        if isinstance(getattr(metric, name), Tensor):
            found = torch.stack(found)
        elif reduction is dim_zero_cat:
            found, reduction = [torch.cat(found)] if found else [], None
        setattr(metric, name, reduction(found) if callable(reduction) and len(found) else found)


def _parts(metric: Metric, name: str) -> list[Tensor]:
    state = getattr(metric, name)
    if isinstance(state, Tensor):
        return [state]
    return [dim_zero_cat(state)] if metric._reductions[name] is dim_zero_cat and len(state) > 1 else list(state)


def _add_up(tensors: list[Tensor], group: Any) -> None:
    """Sums each tensor over the processes, in place."""
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        those = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1).to(_meeting_place(group)) for tensor in those])
        dist.all_reduce(flat, group=group)
        for tensor, total in zip(those, torch.split(flat, [tensor.numel() for tensor in those]), strict=True):
            tensor.copy_(total.view(tensor.shape))


def _gathered(tensors: list[Tensor], forms: list[list[Any]], group: Any) -> Iterator[Iterator[Tensor]]:
    """Of every process the tensors that it sends, which are of these shapes and dtypes, packed into one."""
    packed = [tensor.contiguous().reshape(-1).view(torch.uint8).to(_meeting_place(group)) for tensor in tensors]
    sizes = [[prod(shape) * dtype.itemsize for shape, dtype, _ in form] for form in forms]
    own = torch.empty(max(map(sum, sizes)), dtype=torch.uint8, device=_meeting_place(group))
    torch.cat([own[:0], *packed], out=own[: sum(map(len, packed))])
    buffers = [torch.empty_like(own) for _ in forms]
    if len(own):
        dist.all_gather(buffers, own, group=group)
    for buffer, form, parts in zip(buffers, forms, sizes, strict=True):
        pieces = zip(torch.split(buffer[: sum(parts)], parts), form, strict=True)
        yield (piece.clone().view(dtype).view(shape) for piece, (shape, dtype, _) in pieces)


def _meeting_place(group: Any) -> torch.device:
    """Where tensors meet: NCCL takes no host memory, and so they travel by the GPU."""
    return torch.device("cuda" if "nccl" in str(dist.get_backend(group)) else "cpu")
