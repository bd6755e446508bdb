"""The state of metrics that keep samples: the same ones however the data is batched and split. Letters: L layers,
N samples, D width."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from layersim.errors import UserError
from layersim.similarity.gathering import gather_uneven
from layersim.similarity.layer_metric import LayerMetric
from layersim.similarity.positions import require_distinct, splitmix64

PROCESS_STRIDE = 2**40  # samples a process may number by itself before it meets the next process's numbers


@dataclass(frozen=True)
class Kept:
    """Samples by ascending position."""

    features: Tensor
    """(N, L, D) in the dtype they came in; (0, 0, 0) where there are none."""
    others: Tensor | None
    """(N, …) what came with the samples, None where nothing did."""
    index: Tensor
    """(N,) int64 on the host: their positions."""


class SampleKeeper(LayerMetric):
    """Keeps `max_samples` samples at most: those whose position in the data set has the smallest hash, so that it does
    not matter who saw which when.

    Every state is a list, empty at first, whose parts are joined along their first dimension across processes: neither
    L, D nor the dtype need be known beforehand, and a process without any batch takes part with zero rows.
    """

    full_state_update = True
    is_differentiable = False
    higher_is_better = None

    seen: list[Tensor]
    """At most one (1,) int64 tensor on the host."""
    features: list[Tensor]
    """(n, L, D) tensors in the dtype they came in."""
    others: list[Tensor]
    """(n, …) tensors of the same samples: a second set of features, or targets, where there are any."""
    index: list[Tensor]
    """(n,) int64 tensors on the host: their samples' positions."""

    def __init__(self, *, max_samples: int | None, least: int, group: int = 1) -> None:
        """`least`: how many samples whoever measures them needs. `group`: numbering by itself starts at a multiple of
        it.

        Raises:
            UserError: `max_samples` below `least`.
        """
        if max_samples is not None and max_samples < least:
            raise UserError(f"max_samples: expected at least {least}, got {max_samples}")
        super().__init__(dist_sync_fn=gather_uneven)
        self.max_samples = max_samples
        self.group = group
        for state in ("seen", "features", "others", "index"):
            self.add_state(state, [], dist_reduce_fx="cat")

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

    def keep_rows(self, features: Tensor, others: Tensor | None, index: Tensor) -> None:
        """Keeps (n, L, D) features, (n, …) others and (n,) positions; of more than twice `max_samples`, those that the
        hash of their position chooses."""
        if self.index and bool(self.others) != (others is not None):
            raise UserError("other: expected with every update or with none: reset the metric in between")
        # copies: features are often a slice, which would keep the whole batch's activations alive
        self.features.append(features.clone(memory_format=torch.contiguous_format))
        if others is not None:
            self.others.append(others.clone(memory_format=torch.contiguous_format))
        self.index.append(index)
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

    def kept_rows(self) -> Kept:
        """What all processes kept, `max_samples` at most.

        Raises:
            UserError: a position came twice.
        """
        index, features, others = joined(self.index).cpu().long(), joined(self.features), joined(self.others)
        if not len(index):
            return Kept(features.new_empty(0, 0, 0), None, index)
        chosen = splitmix64(index).argsort()[: self.max_samples]
        order = chosen[index[chosen].argsort()]
        require_distinct(index[order])
        return Kept(features[order], others[order] if len(others) else None, index[order])


def joined(parts: list[Tensor]) -> Tensor:
    """A list state as one tensor: after gathering, torchmetrics leaves one in the place of the list."""
    whole: Tensor = parts if isinstance(parts, Tensor) else torch.cat(parts) if parts else torch.empty(0)
    return whole
