"""The state that similarity metrics share: sums, a count, kept samples. Letters: L layers, N samples, D width."""

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from layersim.errors import UserError
from layersim.similarity.features import require_features
from layersim.similarity.gathering import gather_uneven

PROCESS_STRIDE = 2**40  # samples a process may number by itself before it meets the next process's numbers


class SampleMetric(Metric):
    """A metric over samples that carry their position in the data set, so that it does not matter who saw which when.

    Every state is a list, empty at first, whose parts are joined along their first dimension across processes: neither
    L, D nor the dtype need be known beforehand, and a process without any batch takes part with zero rows.
    """

    full_state_update = True
    is_differentiable = False
    higher_is_better = None

    sums: list[Tensor]
    """At most one (1, L, L) float64 tensor."""
    seen: list[Tensor]
    """At most one (1,) int64 tensor on the host."""
    features: list[Tensor]
    """(n, L, D) tensors in the dtype they came in."""
    index: list[Tensor]
    """(n,) int64 tensors on the host: their samples' positions."""

    def __init__(self, *, max_samples: int | None = None, group: int = 1) -> None:
        """`max_samples`: how many samples to keep at most. `group`: numbering by itself starts at a multiple of it."""
        super().__init__(dist_sync_fn=gather_uneven)
        self.max_samples = max_samples
        self.group = group
        for state in ("sums", "seen", "features", "index"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def admit(self, features: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """The (L, n, D) features in their own dtype and their (n,) positions on the host, both checked and counted.

        Without positions samples are numbered as they come, each process from a start of its own.
        """
        require_features(features)
        samples, before = features.shape[1], self.count()
        if index is None:
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            index = torch.arange(samples) + before + rank * PROCESS_STRIDE // self.group * self.group
        elif index.shape != (samples,) or index.is_floating_point():
            raise UserError(
                f"index: expected ({samples},) integers, one a sample, got {tuple(index.shape)} {index.dtype}"
            )
        self.seen[:] = [torch.tensor([before + samples])]
        return features.detach(), index.cpu().long()

    def count(self) -> int:
        """How many samples were given, by all processes once they are joined."""
        return int(_joined(self.seen).sum())

    def add(self, addend: Tensor) -> None:
        """Adds (L, L) float64 to the sums."""
        self.sums[:] = [addend[None] + self.sums[0] if self.sums else addend[None]]

    def total(self) -> Tensor:
        """(L, L) sums of all processes, or () zero where there are none."""
        total: Tensor = _joined(self.sums).sum(0)
        return total

    def keep(self, features: Tensor, index: Tensor) -> None:
        """Keeps (L, n, D) features; of more than twice `max_samples`, those that the hash of their position chooses."""
        # a copy: features are often a slice, which would keep the whole batch's activations alive
        self.features.append(features.transpose(0, 1).clone(memory_format=torch.contiguous_format))
        self.index.append(index)
        if self.max_samples is not None and sum(map(len, self.index)) > 2 * self.max_samples:
            positions = torch.cat(self.index)
            chosen = splitmix64(positions).argsort()[: self.max_samples]
            self.features[:] = [torch.cat(self.features)[chosen]]
            self.index[:] = [positions[chosen]]

    def kept(self) -> tuple[Tensor, Tensor]:
        """(L, N, D) kept features of all processes and their (N,) positions, ascending, `max_samples` at most.

        Raises:
            UserError: a position came twice.
        """
        index, features = _joined(self.index).cpu().long(), _joined(self.features)
        if not len(index):
            return features.new_empty(0, 0, 0), index
        chosen = splitmix64(index).argsort()[: self.max_samples]
        order = chosen[index[chosen].argsort()]
        require_distinct(index[order])
        return features[order].transpose(0, 1), index[order]


def splitmix64(index: Tensor) -> Tensor:
    """A fixed pseudo-random int64 for every int64, no two alike (Steele, Lea and Flood 2014)."""

    def shifted(value: Tensor, bits: int) -> Tensor:
        zeros_in: Tensor = (value >> bits) & (2 ** (64 - bits) - 1)  # torch by itself shifts the sign in
        return zeros_in

    value = index + (0x9E3779B97F4A7C15 - 2**64)
    value = (value ^ shifted(value, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    value = (value ^ shifted(value, 27)) * (0x94D049BB133111EB - 2**64)
    return value ^ shifted(value, 31)


def require_distinct(ascending: Tensor) -> None:
    """Raises UserError where a position stands twice in (N,) ascending positions: a sample would count double."""
    twice = ascending[1:][ascending[1:] == ascending[:-1]]
    if len(twice):
        raise UserError(
            f"index: expected each sample once, but position {int(twice[0])} came more than once: use a sampler that "
            "does not pad the last shard, reset the metric between epochs, and give every token its own position"
        )


def _joined(parts: list[Tensor]) -> Tensor:
    # after gathering, torchmetrics leaves one tensor in the place of the list
    joined: Tensor = parts if isinstance(parts, Tensor) else torch.cat(parts) if parts else torch.empty(0)
    return joined
