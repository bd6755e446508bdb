"""A sample of the features with their classes, the same however the data is batched and split. Letters: L layers,
N samples, D width."""

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric

from layersim.errors import UserError
from layersim.outputs import LayerFeatures
from layersim.similarity.gathering import gather_uneven
from layersim.similarity.positions import require_distinct, splitmix64
from layersim.similarity.samples import PROCESS_STRIDE


class KeptSamples(Metric):
    """Keeps `max_samples` samples at most, those whose position has the smallest hash: the very ones that a similarity
    of the same `max_samples` keeps.

    `compute` gives them by ascending position, in the dtype they came in. Without positions samples are numbered as
    they come, each process from a start of its own.
    """

    full_state_update = False
    seen: Tensor
    features: list[Tensor]
    """(n, L, D) each."""
    targets: list[Tensor]
    """(n,) each; none where there are none."""
    index: list[Tensor]
    """(n,) positions on the host each."""

    def __init__(self, *, max_samples: int | None, least: int = 1) -> None:
        """`least`: how many samples whoever measures them needs.

        Raises:
            UserError: `max_samples` below `least`.
        """
        if max_samples is not None and max_samples < least:
            raise UserError(f"max_samples: expected at least {least}, got {max_samples}")
        super().__init__(dist_sync_fn=gather_uneven)
        self.max_samples = max_samples
        self.add_state("seen", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for state in ("features", "targets", "index"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, batch: LayerFeatures) -> None:
        """Takes samples, with targets in every update or in none."""
        samples, position = batch.values.shape[1], batch.position
        if position is None:
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            position = torch.arange(samples) + int(self.seen) + rank * PROCESS_STRIDE
        self.seen += samples
        # a copy, samples first: features may be a slice, which would keep the whole batch's activations alive
        self.features.append(batch.values.transpose(0, 1).clone(memory_format=torch.contiguous_format))
        self.index.append(position.cpu().long())
        if batch.targets is not None:
            self.targets.append(batch.targets)
        if self.max_samples is not None and sum(map(len, self.index)) > 2 * self.max_samples:
            chosen = splitmix64(torch.cat(self.index)).argsort()[: self.max_samples]
            for state in (self.features, self.targets, self.index):
                if state:
                    state[:] = [torch.cat(state)[chosen]]

    def compute(self) -> tuple[Tensor, Tensor | None]:
        """The (L, N, D) features that all processes kept, and their (N,) targets, None where there are none.

        Raises:
            UserError: a position came twice.
        """
        index = _joined(self.index).cpu().long()
        chosen = splitmix64(index).argsort()[: self.max_samples]
        order = chosen[index[chosen].argsort()]
        require_distinct(index[order])
        features, targets = _joined(self.features), _joined(self.targets)
        values = features[order].transpose(0, 1) if len(order) else features.new_empty(0, 0, 0)
        return values, targets[order] if len(targets) else None


def _joined(parts: list[Tensor]) -> Tensor:
    # after gathering, torchmetrics leaves one tensor in the place of the list
    joined: Tensor = parts if isinstance(parts, Tensor) else torch.cat(parts) if parts else torch.empty(0)
    return joined
