"""What a policy would know of samples had all layers been computed. Letters: L layers, N samples, C classes."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from layersim.errors import UserError
from layersim.exits.policies import Policy, View, next_streak
from layersim.heads import MAX_LOGITS, Head
from layersim.outputs import LayerFeatures
from layersim.precision import widened


@dataclass(frozen=True)
class ExitTable:
    """What a policy would know of N samples had all L layers been computed; enough to try any threshold afterwards."""

    scores: Tensor
    """(L, N) how sure each layer is, by the policy."""
    predictions: Tensor
    """(L, N) most likely class."""
    losses: Tensor
    """(L, N) cross-entropies in nats, after the layers' temperatures."""
    briers: Tensor
    """(L, N) half Brier scores ½ Σc (pc − 1[c = target])², in [0, 1]: 0 sure and right, 1 sure and wrong."""
    targets: Tensor
    """(N,) classes."""

    def select(self, rows: Tensor) -> "ExitTable":
        """The table of the samples `rows`, (M,) numbers 0 … N − 1, in that order."""
        return ExitTable(*(getattr(self, field.name)[..., rows] for field in fields(self)))


def join_tables(tables: Sequence[ExitTable]) -> ExitTable:
    """One table, on the host, of the samples of all, in their order.

    Raises:
        UserError: there is none to join.
    """
    if not tables:
        raise UserError("Expected samples to calibrate exits on, but got none. Change the data, or its limits.")
    columns = ([getattr(table, field.name).cpu() for table in tables] for field in fields(ExitTable))
    return ExitTable(*(torch.cat(parts, dim=-1) for parts in columns))


@torch.no_grad()
def exit_table(head: Head, features: LayerFeatures, policy: Policy, temperatures: Tensor | None = None) -> ExitTable:
    """The table of one batch, on the host; read layer by layer, and in chunks of samples where the classes are many.

    Args:
        features: with (L, N, D) values of all layers, and targets.
        temperatures: (L,) what each layer's logits are divided by; ones where None.

    Raises:
        UserError: there are no targets, or not one positive temperature for each layer.
    """
    if features.targets is None:
        raise UserError("Expected targets beside the samples, to measure what exits cost, but the data have none.")
    if temperatures is None:
        temperatures = torch.ones(head.num_layers)
    if temperatures.shape != (head.num_layers,) or not (temperatures > 0).all():
        raise UserError(
            f"Expected {head.num_layers} positive temperatures, one for each layer, but got {temperatures.tolist()}."
        )
    chunk = max(1, MAX_LOGITS // head.num_classes)
    parts = zip(torch.split(features.values, chunk, dim=1), torch.split(features.targets, chunk), strict=True)
    return join_tables([_read(head, values, targets, policy, temperatures) for values, targets in parts])


def _read(head: Head, values: Tensor, targets: Tensor, policy: Policy, temperatures: Tensor) -> ExitTable:
    scores, predictions, losses, briers = [], [], [], []
    previous: Tensor | None = None
    before: Tensor | None = None
    streak: Tensor | None = None
    for layer, temperature in enumerate(temperatures):
        logits = widened(head.logits(values[layer : layer + 1], [layer])[0])
        logits = logits / temperature.to(logits)
        prediction = logits.argmax(dim=-1)
        streak = next_streak(prediction, before, streak)
        scores.append(policy.score(View(logits, values[layer], previous, streak)))
        predictions.append(prediction)
        losses.append(cross_entropy(logits, targets, reduction="none"))
        briers.append(half_brier(logits, targets))
        previous, before = values[layer], prediction
    return ExitTable(torch.stack(scores), torch.stack(predictions), torch.stack(losses), torch.stack(briers), targets)


def half_brier(logits: Tensor, targets: Tensor) -> Tensor:
    """½ Σc (pc − 1[c = target])² of (N, C) logits and (N,) targets: (N,) in [0, 1].

    The quadratic score (Brier 1950), halved: like cross-entropy least, in expectation, for the true probabilities, but
    bounded.
    """
    probabilities = logits.softmax(dim=-1)
    target = probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    others = probabilities.scatter(-1, targets.unsqueeze(-1), 0.0).square().sum(dim=-1)
    half: Tensor = ((1 - target).square() + others) / 2
    return half
