"""What removing blocks costs: predicted from the whole model's features, and measured.

Letters: N samples, C classes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from layersim.backbones.base import Backbone
from layersim.errors import UserError
from layersim.evaluation_mode import evaluating, on_device_of
from layersim.export.removal import Removal
from layersim.export.truncation import library_of, truncate
from layersim.heads import Head


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


def try_removal(backbone: Backbone, head: Head, removal: Removal, batches: Iterable[Mapping[str, Any]]) -> RemovalTrial:
    """Predicts and measures a removal on labelled batches, best those that the removal was not chosen on.

    The prediction reads h_L − h_last + h_before: the last layer's features without what the removed blocks added. It
    takes blocks as terms of a sum, and leaves out that those above would see another input.

    Raises:
        UserError: as `truncate`; no batches, or batches without labels.
    """
    library, model = library_of(backbone), truncate(backbone, head, removal.kept)
    whole, before, removed = removal.num_layers - 1, removal.first - 2, removal.last - 1
    totals = torch.zeros(3, 2, dtype=torch.float64)
    samples = 0
    shown = sorted({before, removed, whole})
    with evaluating(backbone, head), torch.no_grad():
        for batch in on_device_of(backbone, batches):
            features = backbone(batch, shown)
            if features.targets is None:
                raise UserError("Measuring a removal needs a label for every sample, but the data gives none.")
            at = dict(zip(shown, features.values, strict=True))
            guess = at[whole] - at[removed] + at[before]
            logits = [
                head.logits(at[whole].unsqueeze(0), [whole])[0],
                head.logits(guess.unsqueeze(0), [removal.kept[-1]])[0],
                library.logits(model, batch),
            ]
            totals += torch.stack([_sums(rows, features.targets) for rows in logits]).cpu()
            samples += len(features.targets)
    if not samples:
        raise UserError("Expected batches to measure a removal on, but got none.")
    return RemovalTrial(samples, *(Score(*row) for row in (totals / samples).tolist()))


def _sums(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy and number of correct predictions of (N, C) logits, (2,) float64."""
    loss = cross_entropy(logits.double(), targets, reduction="sum")
    return torch.stack([loss, (logits.argmax(dim=-1) == targets).sum().double()])
