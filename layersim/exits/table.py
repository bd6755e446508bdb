"""What a policy would know of samples had all layers been computed, and what leaving then costs and saves.

Letters: L layers, N samples, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from layersim.errors import UserError, check_choice
from layersim.exits.given import as_targets, as_temperatures
from layersim.exits.policies import Policy, Seen, exit_layer
from layersim.heads import MAX_LOGITS, Head
from layersim.metrics.calibration import against_target, calibration, calibration_sums
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
    """(L, N) cross-entropies in nats, after the layers' temperatures, as are"""
    sureness: Tensor
    """(2, L, N): the confidence in the prediction, and the Brier score Σc (pc − 1[c = target])², in 0 … 2: 0 sure and
    right, 2 sure and wrong."""
    untempered: Tensor
    """(2, L, N) the same without temperatures."""
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
        UserError: features of other layers than the head's; not one class for each sample, as where there are no
            targets; not one positive temperature for each layer.
    """
    targets = as_targets(head, features)
    like = next(head.parameters())
    converts = torch.is_autocast_enabled(like.device.type)  # by itself, what it wants to
    values = features.values.to(like.device, None if converts else like.dtype)
    divided = as_temperatures(torch.ones(head.num_layers) if temperatures is None else temperatures, head.num_layers)
    chunk = max(1, MAX_LOGITS // head.num_classes)
    parts = zip(torch.split(values, chunk, dim=1), torch.split(targets, chunk), strict=True)
    return join_tables([_read(head, *part, policy, divided) for part in parts])


def _read(head: Head, values: Tensor, targets: Tensor, policy: Policy, temperatures: Tensor) -> ExitTable:
    seen, told = Seen(), []
    for layer, temperature in enumerate(temperatures):
        logits = widened(head.logits(values[layer : layer + 1], [layer])[0])
        raw = _sureness(logits, targets)
        logits = logits / temperature.to(logits)
        loss, sure = raw if temperature == 1 else _sureness(logits, targets)
        score = policy.score(seen.view(logits, values[layer], policy.reads))
        told.append((score, logits.argmax(dim=-1), loss, sure, raw[1]))
    scores, predictions, losses, sureness, untempered = (torch.stack(each, dim=-2) for each in zip(*told, strict=True))
    return ExitTable(scores, predictions, losses, sureness, untempered, targets)


def _sureness(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) cross-entropies, and (2, N) confidences and Brier scores, of (N, C) logits."""
    log_probabilities = logits.log_softmax(dim=-1)
    likelihoods, _, briers = against_target(log_probabilities, targets)
    return -likelihoods, torch.stack([log_probabilities.amax(dim=-1).exp(), briers])


Risk = Literal["error", "disagreement", "loss"]

RISKS: dict[Risk, str] = {
    "error": "the error rate at the exits less that of the full model",
    "disagreement": "the share of samples predicted otherwise than by the full model",
    "loss": "the half Brier score at the exits less that of the full model",
}
"""Each risk in words."""


def drops(table: ExitTable, risk: Risk) -> Tensor:
    """What each sample loses by leaving at each layer, (L, N) float64; 0 at the last layer, and never above 1.

    `error`: 1[wrong here] − 1[wrong at the last layer], in {−1, 0, 1}: leaving early may also save a sample from a
    mistake, and the mean is the difference of two error rates.
    `disagreement`: 1[prediction ≠ the last layer's], in {0, 1}.
    `loss`: half Brier score here − at the last layer, in [−1, 1]. Not the cross-entropy: that is unbounded, so no
    number of samples could promise anything about its mean without knowing more (the quadratic score stands in for it
    as in arXiv 2405.20915).

    Raises:
        UserError: a risk of another name.
    """
    check_choice("risk", risk, Risk)
    match risk:
        case "error":
            cost = (table.predictions != table.targets).double()
        case "disagreement":
            cost = (table.predictions != table.predictions[-1]).double()
        case "loss":
            cost = table.sureness[1].double() / 2
    return cost - cost[-1]


def calibrations(table: ExitTable) -> dict[str, dict[str, list[float]]]:
    """Each layer's calibration, `before` its temperature and `after`: `error`, `brier` and `overconfidence`, L each."""
    right = table.predictions == table.targets
    read = {"before": table.untempered, "after": table.sureness}
    found = {when: calibration(calibration_sums(sure[0], right, sure[1])) for when, sure in read.items()}
    told = ("error", "brier", "overconfidence")
    return {when: {key: each[key].tolist() for key in told} for when, each in found.items()}


@dataclass(frozen=True)
class ExitSummary:
    """What leaving by a threshold did to N samples."""

    policy: str
    threshold: float | None
    """None: every sample goes through all layers."""
    samples: int
    mean_exit_layer: float
    """Counted from 1."""
    layer_gain: float
    """L / mean exit layer: how many times fewer layers were gone through."""
    exits: tuple[int, ...]
    """L counts: samples that left at each layer."""
    accuracy: float
    """Of the predictions at the exits."""
    full_accuracy: float
    """Of the last layer's."""
    loss: float
    """Cross-entropy at the exits, mean, in nats."""
    full_loss: float
    """The last layer's."""

    def describe(self) -> str:
        """Two sentences: where samples left, and what became of accuracy and loss."""
        return (
            f"Of {self.samples} samples the mean exit layer is {self.mean_exit_layer:.2f} of {len(self.exits)}, "
            f"{self.layer_gain:.2f} times fewer layers. "
            f"Accuracy is {self.accuracy:.4f} against {self.full_accuracy:.4f} with all layers, "
            f"cross-entropy {self.loss:.4f} against {self.full_loss:.4f}."
        )


def summarize(table: ExitTable, policy: Policy, threshold: float | None) -> ExitSummary:
    """What leaving by the policy's threshold, None for never, does to the samples of a table."""
    exits = exit_layer(table.scores, threshold)
    num_layers = table.scores.shape[0]
    mean = exits.double().mean().item() + 1
    right = (table.predictions == table.targets).double()
    losses = table.losses.double()
    return ExitSummary(
        policy=policy.name,
        threshold=threshold,
        samples=len(exits),
        mean_exit_layer=mean,
        layer_gain=num_layers / mean,
        exits=tuple(torch.bincount(exits, minlength=num_layers).tolist()),
        accuracy=at_exits(right, exits).mean().item(),
        full_accuracy=right[-1].mean().item(),
        loss=at_exits(losses, exits).mean().item(),
        full_loss=losses[-1].mean().item(),
    )


def at_exits(values: Tensor, exits: Tensor) -> Tensor:
    """(L, N) values of all layers at the samples' exits (N,): (N,)."""
    return values.gather(0, exits.unsqueeze(0)).squeeze(0)
