"""Which contiguous blocks can go: those whose removal changes features least; and what that costs, predicted and
measured. Letters: L layers, N samples, C classes."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from layersim.backbones.base import Backbone
from layersim.errors import UserError, check_choice
from layersim.evaluation import evaluate
from layersim.export.truncation import library_of, truncate
from layersim.heads import Head
from layersim.labels import as_classes
from layersim.outputs import LayerFeatures
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
        """The layer numbers 0 … L − 1 that stay, as `truncate` and `export_as` take them."""
        return [layer for layer in range(self.num_layers) if not self.first <= layer + 1 <= self.last]


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy in nats and share of correct predictions over the samples."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class RemovalTrial:
    """A removal's cost on the same samples."""

    samples: int
    """N in all; for a language model the tokens that predict a target."""
    whole: Score
    """Of the whole model's last layer."""
    predicted: Score
    """Of the whole model's features, were the blocks above to add what they add now: exact where the last block goes,
    else a first-order guess."""
    measured: Score
    """Of the stock model without the blocks, really run."""
    replaced: Score | None = None
    """Of that with something in the blocks' place, where there is anything."""


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
    check_choice("criterion", criterion, Criterion)
    metric = AngularDistance() if criterion == "angular" else CosineSimilarity(centering="none")
    (measured,) = evaluate(backbone, batches, metric, read=lambda batch: backbone(batch).values)
    return torch.as_tensor(measured if criterion == "angular" else 1 - measured)


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


def try_removal(
    backbone: Backbone,
    head: Head,
    removal: Removal,
    batches: Iterable[Mapping[str, Any]],
    replaced: tuple[Backbone, Head] | None = None,
) -> RemovalTrial:
    """Predicts and measures a removal on labelled batches, best those that the removal was not chosen on.

    Beside it, the same removal from a backbone and head that were prepared for it (`replace_linear`), where given.

    The prediction reads h_L − h_last + h_before: the last layer's features without what the removed blocks added. It
    takes blocks as terms of a sum, and leaves out that those above would see another input.

    Raises:
        UserError: as `truncate`; no batches, or batches without labels.
    """
    stock = [truncate(*pair, removal.kept) for pair in ((backbone, head), replaced) if pair is not None]
    parts, read = nn.ModuleList([backbone, head, *stock]), partial(_tried, backbone, head, removal, stock)
    (totals,) = evaluate(parts, batches, Total(), read=read)
    if totals is None or not (samples := int(totals[0, 2])):
        raise UserError("Expected batches to measure a removal on, but got none.")
    return RemovalTrial(samples, *(Score(*row[:2]) for row in (totals / samples).tolist()))


def _tried(
    backbone: Backbone, head: Head, removal: Removal, stock: list[nn.Module], batch: Mapping[str, Any]
) -> Tensor:
    """The whole model, the prediction and the stock models on one batch: a row each in float64, its summed
    cross-entropy, correct predictions and samples."""
    whole, before, removed = removal.num_layers - 1, removal.first - 2, removal.last - 1
    shown = sorted({before, removed, whole})
    features: LayerFeatures = backbone(batch, shown)
    targets = as_classes(features.targets, features.values.shape[1], head.num_classes)
    at = dict(zip(shown, features.values, strict=True))
    guess = at[whole] - at[removed] + at[before]
    logits = [
        head.logits(at[whole].unsqueeze(0), [whole])[0],
        head.logits(guess.unsqueeze(0), [removal.kept[-1]])[0],
        *(library_of(backbone).logits(model, batch) for model in stock),
    ]
    losses = [cross_entropy(rows.double(), targets, reduction="sum") for rows in logits]
    correct = [(rows.argmax(dim=-1) == targets).sum() for rows in logits]
    counted = losses[0].new_full((len(logits),), len(targets))
    return torch.stack([torch.stack(losses), torch.stack(correct), counted], dim=1)


class Total:
    """Collects tensors of one shape by adding them, on the host; None where none came."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def update(self, output: Tensor) -> None:
        self.total = output.cpu() if self.total is None else self.total + output.cpu()

    def compute(self) -> Tensor | None:
        return self.total
