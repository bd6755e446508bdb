"""The state that similarity metrics share: sums, a count, kept samples. Letters: L and M layers, N samples, D and D'
width."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from layersim.errors import UserError
from layersim.similarity.features import require_pair
from layersim.similarity.gathering import gather_uneven
from layersim.similarity.intervals import Interval, jackknife, sums_by_group
from layersim.similarity.positions import require_distinct, splitmix64
from layersim.similarity.properties import Properties

PROCESS_STRIDE = 2**40  # samples a process may number by itself before it meets the next process's numbers


@dataclass(frozen=True)
class Batch:
    """Samples with their positions in the data set."""

    features: Tensor
    """(L, n, D)."""
    other: Tensor | None
    """(M, n, D') of the same samples, from the model compared with."""
    index: Tensor
    """(n,) int64 on the host."""


class SampleMetric(Metric):
    """A metric over samples that carry their position in the data set, so that it does not matter who saw which when.

    Every state is a list, empty at first, whose parts are joined along their first dimension across processes: neither
    L, D nor the dtype need be known beforehand, and a process without any batch takes part with zero rows.
    """

    full_state_update = True
    is_differentiable = False
    higher_is_better = None

    sums: list[Tensor]
    """At most one (1, G, …, …) float64 tensor: a sum for each jackknife group, so that an interval needs no samples."""
    units: list[Tensor]
    """At most one (1, G) int64 tensor on the host: how many units each of the sums is over."""
    seen: list[Tensor]
    """At most one (1,) int64 tensor on the host."""
    features: list[Tensor]
    """(n, L, D) tensors in the dtype they came in."""
    others: list[Tensor]
    """(n, M, D') tensors of the same samples: the second set of layers, where there is one."""
    index: list[Tensor]
    """(n,) int64 tensors on the host: their samples' positions."""

    def __init__(self, *, max_samples: int | None = None, group: int = 1) -> None:
        """`max_samples`: how many samples to keep at most. `group`: numbering by itself starts at a multiple of it."""
        super().__init__(dist_sync_fn=gather_uneven)
        self.max_samples = max_samples
        self.group = group
        for state in ("sums", "units", "seen", "features", "others", "index"):
            self.add_state(state, [], dist_reduce_fx="cat")

    @property
    @abstractmethod
    def properties(self) -> Properties:
        """What the measure promises with these options."""

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What a run records beside the values."""

    def interval(self, confidence: float = 0.95) -> Interval:
        """The value, as `compute` has it, and its interval by the `jackknife`, of all processes' samples.

        From sums over samples it costs next to nothing; from kept samples, what 21 values cost, and of linear CKA 4.

        Raises:
            UserError: what `compute` raises, a confidence out of bounds, or too few samples to leave some out.
        """
        self.sync(dist_sync_fn=self.dist_sync_fn)
        try:
            return self.interval_of_state(confidence)
        finally:
            self.unsync(should_unsync=self._is_synced)

    @abstractmethod
    def interval_of_state(self, confidence: float) -> Interval:
        """The interval of the samples in the state as it is, whether joined across processes or not."""

    def admit(self, features: Tensor, index: Tensor | None, other: Tensor | None) -> Batch:
        """The batch as it came, checked and counted, with its (n,) positions on the host.

        Without positions samples are numbered as they come, each process from a start of its own.
        """
        require_pair(features, other)
        samples, before = features.shape[1], self.count()
        if index is None:
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            index = torch.arange(samples) + before + rank * PROCESS_STRIDE // self.group * self.group
        elif index.shape != (samples,) or index.is_floating_point():
            raise UserError(
                f"index: expected ({samples},) integers, one a sample, got {tuple(index.shape)} {index.dtype}"
            )
        self.seen[:] = [torch.tensor([before + samples])]
        return Batch(features.detach(), None if other is None else other.detach(), index.cpu().long())

    def count(self) -> int:
        """How many samples were given, by all processes once they are joined."""
        return int(_joined(self.seen).sum())

    def add(self, values: Tensor, units: Tensor) -> None:
        """Adds (n, …, …) float64 values of n units, with their (n,) numbers on the host, to their groups' sums."""
        for state, addend in zip((self.sums, self.units), sums_by_group(values, units), strict=True):
            state[:] = [addend[None] + state[0].to(addend.device) if state else addend[None]]

    def added(self) -> tuple[Tensor, Tensor]:
        """The sums of each of G groups, (G, …, …), and its number of units, (G,), of all processes."""
        return _joined(self.sums).sum(0), _joined(self.units).sum(0).cpu()

    def keep(self, batch: Batch) -> None:
        """Keeps the batch; of more than twice `max_samples`, those that the hash of their position chooses."""
        if self.index and bool(self.others) != (batch.other is not None):
            raise UserError("other: expected with every update or with none: reset the metric in between")
        self.features.append(_copied(batch.features))
        if batch.other is not None:
            self.others.append(_copied(batch.other))
        self.index.append(batch.index)
        if self.max_samples is not None and sum(map(len, self.index)) > 2 * self.max_samples:
            self.select(splitmix64(torch.cat(self.index)).argsort()[: self.max_samples])

    def select(self, chosen: Tensor) -> None:
        """Lets go of all kept samples but the `chosen`, numbers or a mask."""
        for state in (self.features, self.others, self.index):
            if state:
                state[:] = [torch.cat(state)[chosen]]

    def kept(self) -> Batch:
        """What all processes kept, positions ascending, `max_samples` at most.

        Raises:
            UserError: a position came twice.
        """
        index, features, others = _joined(self.index).cpu().long(), _joined(self.features), _joined(self.others)
        if not len(index):
            return Batch(features.new_empty(0, 0, 0), None, index)
        chosen = splitmix64(index).argsort()[: self.max_samples]
        order = chosen[index[chosen].argsort()]
        require_distinct(index[order])
        other = others[order].transpose(0, 1) if len(others) else None
        return Batch(features[order].transpose(0, 1), other, index[order])


class WholeMetric(SampleMetric):
    """A measure of samples that are kept, as most need all of theirs at once; with options that let sums suffice, a
    measure overrides what is kept and computed.

    Of more than `max_samples` those whose position has the smallest hash are kept, so that the choice depends on the
    data alone: the same value whatever the batch size, the order and the number of processes.
    """

    function: Callable[..., Tensor]
    """The measure: (L, N, D) features, against themselves or (M, N, D') others, → (L, M)."""

    def __init__(self, *, max_samples: int | None, least: int, group: int = 1, **arguments: Any) -> None:
        """`least`: how many samples the measure needs. `group`: see SampleMetric. `arguments`: of the function.

        Raises:
            UserError: `max_samples` below `least`.
        """
        if max_samples is not None and max_samples < least:
            raise UserError(f"max_samples: expected at least {least}, got {max_samples}")
        super().__init__(max_samples=max_samples, group=group)
        self.arguments = arguments

    @property
    def options(self) -> dict[str, Any]:
        """What a run records beside the values."""
        return {**self.arguments, "max_samples": self.max_samples}

    def update(self, features: Tensor, index: Tensor | None = None, *, other: Tensor | None = None) -> None:
        """Takes (L, n, D) features, their samples' (n,) integer positions in the data set, on the host, and, to compare
        two models, the (M, n, D') features that the `other` has for the same samples.

        Without positions samples are numbered as they come; on several processes give them, or the choice of samples
        depends on the split.
        """
        self.keep(self.admit(features, index, other))

    def compute(self) -> Tensor:
        """(L, L) or (L, M) float64, as the function on the kept samples; raises what it raises."""
        kept = self.kept()
        return self.function(kept.features, kept.other, **self.arguments)

    def interval_of_state(self, confidence: float) -> Interval:
        """The measure again without each group of the kept samples."""
        kept = self.kept()
        return jackknife(
            partial(self.function, **self.arguments), kept.features, kept.other, confidence=confidence, index=kept.index
        )


def _copied(features: Tensor) -> Tensor:
    # a copy, samples first: features are often a slice, which would keep the whole batch's activations alive
    return features.transpose(0, 1).clone(memory_format=torch.contiguous_format)


def _joined(parts: list[Tensor]) -> Tensor:
    # after gathering, torchmetrics leaves one tensor in the place of the list
    joined: Tensor = parts if isinstance(parts, Tensor) else torch.cat(parts) if parts else torch.empty(0)
    return joined
