"""Which contiguous blocks can go: those whose removal changes features least. Letters: L layers."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from layersim.backbones.base import Backbone
from layersim.errors import UserError
from layersim.evaluation_mode import evaluating, on_device_of
from layersim.similarity import AngularDistance, CosineSimilarity

Criterion = Literal["angular", "influence"]


@dataclass(frozen=True)
class Removal:
    """Contiguous blocks to remove."""

    first: int
    """The first block that goes, counted from 1; never block 1."""
    last: int
    """The last block that goes."""
    num_layers: int
    """L of the whole model."""
    criterion: Criterion
    change: float
    """How far features move from the first block's input to the last's output: in half turns, 0 … 1, for `angular`; as
    1 − cosine, 0 … 2, for `influence`."""

    @property
    def kept(self) -> list[int]:
        """The layer numbers 0 … L − 1 that stay, as `truncate` and `export_stock` take them."""
        return [layer for layer in range(self.num_layers) if not self.first <= layer + 1 <= self.last]


def feature_changes(
    backbone: Backbone, batches: Iterable[Mapping[str, Any]], criterion: Criterion = "angular"
) -> Tensor:
    """(L, L) mean change between layers' features at the token that counts, over all samples; 0 on the diagonal.

    Args:
        batches: need no labels.
        criterion: `angular`: arccos(cos) / π (Gromov et al. 2024, arXiv 2403.17887, eq. 9). `influence`: 1 − cos, which
            between neighbours is block influence (ShortGPT, arXiv 2403.03853, eq. 1), and over several blocks that of
            all of them taken as one. Features are not centred, in both as published.

    Raises:
        UserError: an unknown criterion; no batches.
    """
    if criterion not in get_args(Criterion):
        raise UserError(f"Expected a criterion of {', '.join(get_args(Criterion))}, but got {criterion!r}.")
    metric = AngularDistance() if criterion == "angular" else CosineSimilarity(centering="none")
    metric = metric.to(next(backbone.parameters()).device)
    with evaluating(backbone), torch.no_grad():
        for batch in on_device_of(backbone, batches):
            metric.update(backbone(batch).values)
    measured: Tensor = metric.compute()
    return measured if criterion == "angular" else 1 - measured


def propose_removal(changes: Tensor, blocks: int, criterion: Criterion = "angular") -> Removal:
    """The `blocks` contiguous blocks between whose input and output `changes` are least; of equals the deepest.

    Layer features are what blocks put out, so the first block's input is not among them: block 1 always stays.

    Args:
        changes: (L, L), as `feature_changes` gives them for this criterion.
        blocks: how many to remove, 1 … L − 1.

    Raises:
        UserError: `blocks` outside its range, or a change that is not finite.
    """
    layers = len(changes)
    if not 1 <= blocks < layers:
        raise UserError(f"Expected to remove 1 … {layers - 1} of {layers} blocks, but got {blocks}.")
    spans = changes.diagonal(blocks).tolist()
    if not all(map(math.isfinite, spans)):
        raise UserError("Features have no direction at some layer (zero, or not finite), so that no change is known.")
    before = min(range(len(spans)), key=lambda layer: (spans[layer], -layer))
    return Removal(before + 2, before + 1 + blocks, layers, criterion, spans[before])
