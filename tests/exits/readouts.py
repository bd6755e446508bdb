"""Readouts drawn from a simple model of a network, where the truth about every threshold is known."""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from layersim.exits import ExitTable
from layersim.metrics.calibration import against_target


def table_of(logits: Tensor, targets: Tensor) -> ExitTable:
    """The confidence policy's table of (L, N, C) logits."""
    briers = against_target(logits.log_softmax(dim=-1), targets.expand(logits.shape[:2]))[2]
    sure = torch.stack([logits.softmax(dim=-1).amax(dim=-1), briers])
    return ExitTable(
        scores=logits.softmax(dim=-1).amax(dim=-1),
        predictions=logits.argmax(dim=-1),
        losses=torch.stack([cross_entropy(layer, targets, reduction="none") for layer in logits]),
        sureness=sure,
        untempered=sure,
        targets=targets,
    )


@cache
def pool(num_samples: int = 20_000, num_layers: int = 6, num_classes: int = 10) -> ExitTable:
    """Logits whose evidence for the target grows with the layer, more slowly for hard samples, under drifting noise.

    The last layer is right for about nine in ten, and for some samples an earlier layer is right where the last is not.
    """
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(num_classes, (num_samples,), generator=draw)
    ease = 6 * torch.rand(num_samples, generator=draw)
    noise = torch.randn(num_samples, num_classes, generator=draw)
    layers = []
    for layer in range(1, num_layers + 1):
        noise = 0.8 * noise + 0.6 * torch.randn(num_samples, num_classes, generator=draw)
        evidence = (1 + ease * layer / num_layers).unsqueeze(1) * torch.eye(num_classes)[targets]
        layers.append(2 * (noise + evidence))
    return table_of(torch.stack(layers), targets)


THRESHOLDS: list[float] = torch.linspace(0.4, 1, 150).tolist()
"""Confidences fine enough that a naive choice ends just below its target."""
