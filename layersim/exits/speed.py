"""How much sooner an answer comes when samples leave early: seconds, not layers."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from layersim.backbones.base import Backbone
from layersim.evaluation import evaluating
from layersim.exits.runner import EarlyExit
from layersim.heads import Head

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Speed:
    """Medians over rounds in which the whole model and the early exit took turns on the same batches."""

    seconds: float
    """For a sample, with exits."""
    full_seconds: float
    """For a sample, through all layers and the head at the last."""
    wall_gain: float
    """The whole model's time divided by the early exit's, of the same round."""


def measure_speed(
    backbone: Backbone, head: Head, runs: Sequence[EarlyExit], batches: Sequence[Batch], *, rounds: int = 3
) -> list[Speed]:
    """The speed of each of the runs on the batches, which lie on the model's device already.

    Args:
        backbone: of the runs.
        head: of the runs.
        runs: early exits with different thresholds, say.
        batches: read once a round by each; one more round before the first is not counted.
        rounds: at least 1.
    """
    last = backbone.num_layers - 1

    def whole(batch: Batch) -> None:
        with evaluating(backbone, head), torch.inference_mode():
            head.logits(backbone(batch, [last]).values, [last]).argmax(dim=-1)

    samples = sum(len(next(iter(batch.values()))) for batch in batches)
    contestants: list[Callable[[Batch], object]] = [whole, *runs]
    seconds: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds + 1):
        for contestant, taken in zip(contestants, seconds, strict=True):
            taken.append(timed(contestant, batches))
    full, *early = (taken[1:] for taken in seconds)
    return [
        Speed(median(taken) / samples, median(full) / samples, median(a / b for a, b in zip(full, taken, strict=True)))
        for taken in early
    ]


def timed(
    run: Callable[[Batch], object], batches: Sequence[Batch], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of a run through the batches."""
    wait()
    start = clock()
    for batch in batches:
        run(batch)
    wait()
    return clock() - start


def wait() -> None:
    """Until an accelerator has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
