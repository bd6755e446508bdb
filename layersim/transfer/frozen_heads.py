"""Heads fitted to features that a frozen model gave. Letters: L layers, N samples, D width, C classes."""

from collections.abc import Callable
from math import sqrt

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from layersim.errors import UserError
from layersim.heads import Head, LinearProbes
from layersim.objectives import Objective, Reading, Step
from layersim.outputs import LayerFeatures
from layersim.transfer.linear_probe import HELD_OUT, fit_probe, standardisation

BATCH = 512
"""Samples in a step."""
RATE = 0.03
"""Adam's at first, for features of width 1: it falls with √D, and to 0 at the end."""
MOST_LOGISTIC = 100
"""Classes up to which probes are fitted by L-BFGS, each with a penalty of its own."""
_CHECKS = 20


def train_head(
    head: Head,
    objective: Objective,
    each: Callable[[Reading], Tensor],
    features: LayerFeatures,
    *,
    steps: int,
    seed: int = 0,
    told: str = "Training",
) -> None:
    """Trains what of a head takes a gradient, by Adam, on (L, N, D) features that stay where they are.

    A fifth of the samples is held out: each layer ends with the weights that were best there, of those at the start and
    at twenty times on the way. So no layer ends worse there than it began.

    Args:
        head: whose layers have weights of their own (`parts_at`).
        objective: what is minimised.
        each: (L,) losses of a reading, by which a layer's weights are compared.
        features: with targets.
        steps: of Adam, on 512 samples each.
        seed: of the samples that are held out, and of those of each step.
        told: what the progress bar says.

    Raises:
        UserError: fewer than two samples, or a loss that is not finite.
    """
    values, targets = features.values, features.targets
    assert targets is not None
    samples, layers = len(targets), list(range(head.num_layers))
    if samples < 2:
        raise UserError(f"A head is trained on two samples or more, but there are {samples}. Change --data.")
    own = [[one for part in head.parts_at(at) for one in part.parameters() if one.requires_grad] for at in layers]
    device = next(head.parameters()).device
    optimizer = torch.optim.Adam([one for at in own for one in at], lr=RATE / sqrt(values.shape[-1]))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    draw = torch.Generator().manual_seed(seed)
    order, few = torch.randperm(samples, generator=draw), max(1, round(HELD_OUT * samples))
    held, fitted = order[:few], order[few:]

    def read(rows: Tensor, step: Step | None) -> Reading:
        return Reading(head, values[:, rows].to(device), targets[rows].to(device), layers, len(layers), step)

    best, kept = torch.full((len(layers),), torch.inf), [[one.detach().clone() for one in at] for at in own]
    for number in track(range(steps + 1), description=told):
        if number % max(1, steps // _CHECKS) == 0 or number == steps:
            with torch.no_grad():
                losses = each(read(held, None)).cpu()
            if not losses.isfinite().all():
                raise UserError(f"{told} gave a loss that is not finite at step {number}: the features may not be.")
            for at in (losses < best).nonzero().flatten().tolist():
                best[at], kept[at] = losses[at], [one.detach().clone() for one in own[at]]
        if number < steps:
            rows = fitted[torch.randint(len(fitted), (min(BATCH, len(fitted)),), generator=draw)]
            optimizer.zero_grad()
            objective(read(rows, Step(number, number, steps, seed))).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        for one, value in zip((one for at in own for one in at), (one for at in kept for one in at), strict=True):
            one.copy_(value)


def fit_probes(
    head: LinearProbes,
    objective: Objective,
    features: LayerFeatures,
    *,
    steps: int,
    seed: int = 0,
    told: str = "Fitting probes",
    start: nn.Linear | None = None,
) -> list[float | None]:
    """Fits linear probes: by L-BFGS and with a penalty for each layer (`fit_probe`), of more than a hundred classes by
    `train_head` on standardised features, or by it from a classifier that knows much already.

    Args:
        head: of raw features where there is no start.
        objective: of the steps.
        features: with targets.
        steps: where it takes steps.
        seed: of the samples that are held out.
        told: what the progress bar says.
        start: where each layer's probe starts, such as a language model's own classifier of normed features: thousands
            of classes are more than a probe learns from nothing.

    Returns:
        (L,) penalties; None where none was chosen.

    Raises:
        UserError: as `fit_probe`; of a classifier fewer samples than classes, or a class without any.
    """
    assert features.targets is not None
    classes, targets = head.num_classes, features.targets.cpu()
    if start is not None:
        for made in head.classifiers:
            _set(made, start.weight, made.bias if start.bias is None else start.bias)
        train_head(head, objective, lambda read: read.losses, features, steps=steps, seed=seed, told=told)
        return [None] * head.num_layers
    if len(targets) < classes:
        raise UserError(
            f"Expected as many training samples as classes at least, {classes}, for a probe, but got {len(targets)}. "
            "Change --data or --max_samples."
        )
    if classes > MOST_LOGISTIC:
        mean, scale = (torch.from_numpy(each) for each in standardisation(features.values.double().numpy()))
        scaled = ((features.values - mean) * scale).float()
        standardised = LayerFeatures(scaled, targets)
        train_head(head, objective, lambda read: read.losses, standardised, steps=steps, seed=seed, told=told)
        with torch.no_grad():
            for made, middle, factor in zip(head.classifiers, mean, scale, strict=True):
                _set(made, made.weight.cpu() * factor, made.bias.cpu() - (made.weight.cpu() * factor) @ middle[0])
        return [None] * head.num_layers
    penalties: list[float | None] = []
    for made, values in track([*zip(head.classifiers, features.values, strict=True)], description=told):
        probe = fit_probe(values, targets, seed=seed, option="--data or --max_samples")
        if len(absent := np.setdiff1d(np.arange(classes), probe.classes)):
            raise UserError(
                f"A probe tells apart what it was shown, but none of the {len(targets)} training samples is of class "
                f"{absent[0]}. Change --data or --max_samples."
            )
        _set(made, torch.from_numpy(probe.weight), torch.from_numpy(probe.bias))
        penalties.append(probe.penalty)
    return penalties


@torch.no_grad()
def _set(made: nn.Module, weight: Tensor, bias: Tensor) -> None:
    assert isinstance(made, nn.Linear)
    made.weight.copy_(weight)
    made.bias.copy_(bias)
