"""Samples that metrics keep: the same ones however the data is batched and split. Letters: L and M layers, N samples, D
and D' width."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from layersim.errors import UserError
from layersim.outputs import LayerFeatures
from layersim.similarity.layer_metric import LayerMetric
from layersim.similarity.positions import require_distinct, splitmix64

PROCESS_STRIDE = 2**40  # samples a process may number by itself before it meets the next process's numbers


@dataclass(frozen=True)
class Samples:
    """Samples with their positions in the data set."""

    features: Tensor
    """(L, N, D) in the dtype they came in; (0, 0, 0) where there are none."""
    other: Tensor | None
    """What came with them: (M, N, D') features of the model compared with, or (N,) targets; None where nothing did."""
    index: Tensor
    """(N,) int64 on the host."""


class SampleKeeper(LayerMetric):
    """Keeps `max_samples` samples at most: those whose position in the data set has the smallest hash, so that it does
    not matter who saw which when.

    Every state is a list, empty at first, whose parts are joined along their first dimension across processes: neither
    L, D nor the dtype need be known beforehand, and a process without any batch takes part with zero rows.
    """

    full_state_update = True
    is_differentiable = False
    higher_is_better = None
    group = 1
    """Numbering by itself starts at a multiple of it."""

    seen: list[Tensor]
    """At most one (1,) int64 tensor on the host."""
    features: list[Tensor]
    """(n, L, D) tensors in the dtype they came in."""
    others: list[Tensor]
    """(n, …) tensors of the same samples: a second set of features, or targets, where there are any."""
    index: list[Tensor]
    """(n,) int64 tensors on the host: their samples' positions."""

    def __init__(self, *, max_samples: int | None) -> None:
        super().__init__(dist_sync_fn=gather_uneven)
        self.max_samples = max_samples
        for state in ("seen", "features", "others", "index"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def require_cap(self, least: int) -> None:
        """Raises UserError where `max_samples` is below what whoever measures the samples needs."""
        if self.max_samples is not None and self.max_samples < least:
            raise UserError(f"max_samples: expected at least {least}, got {self.max_samples}")

    def numbered(self, samples: int, index: Tensor | None) -> Tensor:
        """Counts a batch of samples, and gives their (n,) positions on the host.

        Without positions samples are numbered as they come, each process from a start of its own. Raises UserError for
        what is not n integers.
        """
        before = self.count()
        if index is None:
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            index = torch.arange(samples) + before + rank * PROCESS_STRIDE // self.group * self.group
        elif index.shape != (samples,) or index.is_floating_point():
            raise UserError(
                f"index: expected ({samples},) integers, one a sample, got {tuple(index.shape)} {index.dtype}"
            )
        self.seen[:] = [torch.tensor([before + samples])]
        return index.cpu().long()

    def count(self) -> int:
        """How many samples were given, by all processes once they are joined."""
        return int(joined(self.seen).sum())

    def keep(self, batch: Samples) -> None:
        """Keeps the batch; of more than twice `max_samples`, those that the hash of their position chooses."""
        if self.index and bool(self.others) != (batch.other is not None):
            raise UserError("other: expected with every update or with none: reset the metric in between")
        # copies: features are often a slice, which would keep the whole batch's activations alive
        for state, given in ((self.features, batch.features), (self.others, batch.other)):
            if given is not None:
                state.append(_samples_first(given).clone(memory_format=torch.contiguous_format))
        self.index.append(batch.index)
        if self.max_samples is not None and sum(map(len, self.index)) > 2 * self.max_samples:
            self.select(splitmix64(torch.cat(self.index)).argsort()[: self.max_samples])

    def select(self, chosen: Tensor) -> None:
        """Lets go of all kept samples but the `chosen`, (n,) numbers on the host."""
        for state in (self.features, self.others, self.index):
            if state:
                rows = torch.cat(state)
                state[:] = [rows[chosen.to(rows.device, non_blocking=True)]]

    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any = None,
        should_sync: bool = True,
        distributed_available: Callable[[], bool] | None = None,
    ) -> None:
        """As torchmetrics' own; but of the rows over `max_samples` of all processes none travels, only hashes."""
        available = distributed_available or self.distributed_available_fn
        if self.max_samples is not None and should_sync and not self._is_synced and available():
            self._let_go(self.max_samples, process_group or self.process_group)
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def _let_go(self, most: int, group: Any) -> None:
        """Keeps of this process's samples those that are among all processes' first `most`, now and so ever after."""
        own = splitmix64(joined(self.index).cpu().long())
        first = torch.cat(gather_uneven(own.sort().values[:most], group)).sort().values[:most]
        if len(first) == most:
            self.select((own <= first[-1]).nonzero().flatten())

    def kept(self, these: Tensor | None = None) -> Samples:
        """What all processes kept, by ascending position, `max_samples` at most.

        Args:
            these: (n,) whether each of the samples in the state is wanted; all where None.

        Raises:
            UserError: a position came twice.
        """
        index, features, others = joined(self.index).cpu().long(), joined(self.features), joined(self.others)
        if not len(index):
            return Samples(features.new_empty(0, 0, 0), None, index)
        chosen = splitmix64(index).argsort()[: self.max_samples] if these is None else these.nonzero().flatten()
        order = chosen[index[chosen].argsort()]
        require_distinct(index[order])

        def taken(rows: Tensor) -> Tensor:
            return _samples_first(rows[order.to(rows.device, non_blocking=True)])

        return Samples(taken(features), taken(others) if len(others) else None, index[order])


class KeptSamples(SampleKeeper):
    """The features of `max_samples` samples at most, with their classes: the very ones that a similarity of the same
    `max_samples` keeps.

    Without positions samples are numbered as they come, each process from a start of its own.
    """

    def __init__(self, *, max_samples: int | None, least: int = 1) -> None:
        """`least`: how many samples whoever measures them needs.

        Raises:
            UserError: `max_samples` below `least`.
        """
        super().__init__(max_samples=max_samples)
        self.require_cap(least)

    def update(self, batch: LayerFeatures) -> None:
        """Takes samples, with targets in every update or in none."""
        index = self.numbered(batch.values.shape[1], batch.position)
        self.keep(Samples(batch.values.detach(), batch.targets, index))

    def compute(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """By ascending position, what all processes kept: the (L, N, D) features in the dtype they came in, their (N,)
        targets, None where there are none, and their (N,) positions on the host.

        Raises:
            UserError: a position came twice.
        """
        kept = self.kept()
        return kept.features, kept.other, kept.index


def gather_uneven(state: Tensor, group: Any = None) -> list[Tensor]:
    """Every process's `state`, equal but for their number of rows; a process without any takes part with zero rows.

    torchmetrics gathers tensors of one dtype and number of dimensions only, and a process that never saw a batch knows
    neither: without this its peers would hang or fail. NCCL takes no host memory, so such states travel by the GPU.
    """
    known: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(known, (tuple(state.shape), state.dtype), group=group)
    shape, dtype = max(known, key=lambda shape_and_dtype: math.prod(shape_and_dtype[0]))
    home = state.device
    if state.numel() == 0:
        state = torch.zeros((0, *shape[1:]), dtype=dtype, device=home)
    if "nccl" in str(dist.get_backend(group)):
        state = state.to(torch.device("cuda", torch.cuda.current_device()))
    return [part.to(home) for part in gather_all_tensors(state, group)]


def joined(parts: list[Tensor]) -> Tensor:
    """A list state as one tensor: after gathering, torchmetrics leaves one in the place of the list."""
    whole: Tensor = parts if isinstance(parts, Tensor) else torch.cat(parts) if parts else torch.empty(0)
    return whole


def _samples_first(values: Tensor) -> Tensor:
    """(L, n, D) → (n, L, D), and back; (n,) targets as they are."""
    return values.transpose(0, 1) if values.ndim == 3 else values
