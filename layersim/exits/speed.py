"""How much sooner an answer comes when samples, or tokens, leave early: seconds, not layers."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any

import torch
from torch import Tensor

from layersim.evaluation import evaluating
from layersim.exits.generation import TokenExit
from layersim.exits.runner import EarlyExit

Batch = Mapping[str, Any]
Run = Callable[[Any], object]
"""What answers a batch."""
_LEAST = 0.02
"""Seconds: what takes less is repeated until it takes as much, and then timed."""


@dataclass(frozen=True)
class Speed:
    """Medians over rounds in which the whole model and the early exit took turns on the same batches."""

    seconds: float
    """For a sample or token, with exits."""
    full_seconds: float
    """For a sample, through all layers and the last head; for a token, by transformers' own greedy `generate`."""
    wall_gain: float
    """`full_seconds` divided by `seconds`."""


@dataclass(frozen=True)
class TokenSpeed(Speed):
    """The same of texts that are written."""

    batch_size: int
    """Texts written side by side."""
    mean_exit_layer: float
    """Of the tokens that were timed."""
    layer_gain: float
    """L / mean exit layer."""


def measure_speed(runs: Sequence[EarlyExit], batches: Sequence[Batch], *, rounds: int = 3) -> list[Speed]:
    """The speed of each of the runs on the batches, which lie on the model's device already.

    Args:
        runs: early exits of one model, with different thresholds, say.
        batches: read once a round by each; one more round before the first is not counted.
        rounds: at least 1.
    """
    backbone, head = runs[0].backbone, runs[0].head
    last = backbone.num_layers - 1

    def whole(batch: Batch) -> None:
        with evaluating(backbone, head), torch.inference_mode():
            head.logits(backbone(batch, [last]).values, [last]).argmax(dim=-1)

    samples = sum(len(next(iter(batch.values()))) for batch in batches)
    contestants: list[Run] = [whole, *runs]
    full, *early = in_turns([(run, batches) for run in contestants], rounds)
    return [Speed(*_medians(full, taken, samples)) for taken in early]


def measure_token_speed(
    exits: TokenExit, input_ids: Tensor, new_tokens: int, batch_size: int, *, rounds: int = 3
) -> TokenSpeed:
    """The speed of writing behind prompts.

    Args:
        input_ids: (N, P), on the model's device.
        new_tokens: T, for each.
        batch_size: prompts at a time.
        rounds: at least 1; one more before the first is not counted.
    """
    layers: list[float] = []
    model = exits.backbone.model
    greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}

    def whole(ids: Tensor) -> None:
        with evaluating(exits.backbone), torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **greedy)

    def early(ids: Tensor) -> None:
        layers.append(exits.generate(ids, None, new_tokens).mean_exit_layer())

    batches = torch.split(input_ids, batch_size)
    full, taken = in_turns([(whole, batches), (early, batches)], rounds)
    mean = sum(layers) / len(layers)
    medians = _medians(full, taken, len(input_ids) * new_tokens)
    return TokenSpeed(*medians, batch_size, mean, exits.backbone.num_layers / mean)


def quickest(runs: Sequence[Run], batches: Sequence[Batch], rounds: int) -> list[float]:
    """Seconds of each through all batches: the least of rounds in which they take turns, after one that is not counted.
    The least, because whatever else the machine does only adds to it; and of one thread those of the processor."""
    alone = torch.get_num_threads() == 1 and next(iter(batches[0].values())).device.type == "cpu"
    clock = time.process_time if alone else time.perf_counter
    times = [min(max(1, ceil(_LEAST / max(timed(run, batches, clock), 1e-6))), 100) for run in runs]
    repeated = [(run, [*batches] * each) for run, each in zip(runs, times, strict=True)]
    return [min(taken) / each for taken, each in zip(in_turns(repeated, rounds, clock), times, strict=True)]


def in_turns(
    contestants: Sequence[tuple[Run, Sequence[Any]]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Seconds of each through its batches, round by round, in turns; one more round before the first is not counted."""
    taken = [[timed(run, batches, clock) for run, batches in contestants] for _ in range(rounds + 1)]
    return [list(column) for column in zip(*taken[1:], strict=True)]


def timed(run: Run, batches: Sequence[Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a run through the batches."""
    _wait()
    start = clock()
    for batch in batches:
        run(batch)
    _wait()
    return clock() - start


def _medians(full: Sequence[float], taken: Sequence[float], answers: int) -> tuple[float, float, float]:
    """As `Speed` has them."""
    seconds, full_seconds = median(taken) / answers, median(full) / answers
    return seconds, full_seconds, full_seconds / seconds


def _wait() -> None:
    """Until an accelerator has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
