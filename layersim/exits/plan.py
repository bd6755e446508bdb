"""What exits will gain, before they are tried: predicted from the seconds of a layer with its head, and of taking
samples out of a batch. Letters: L layers, N samples, K batch sizes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layersim.backbones.base import Backbone
from layersim.errors import UserError
from layersim.exits.curve import along_exits, exit_counts
from layersim.exits.policies import Policy, View, exit_layer
from layersim.exits.runner import EarlyExit
from layersim.exits.speed import Batch, quickest
from layersim.exits.table import ExitTable
from layersim.heads import Head

_BATCHES = 8
"""Batches that costs are measured on, at most, where they differ in shape, as texts do."""


class Scheduled(Policy):
    """Computes another policy's scores, then lets go of each sample at the layer planned for it."""

    name = "scheduled"

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def plan(self, layers: Tensor) -> None:
        """Where the next batch's samples leave, (N,) layers 0 … L − 1."""
        self.remaining = layers
        self.layer = 0

    def score(self, view: View) -> Tensor:
        self.policy.score(view)
        leaves = self.remaining == self.layer
        self.remaining = self.remaining[~leaves]
        self.layer += 1
        return leaves.float()


@dataclass(frozen=True)
class Costs:
    """Seconds that a batch of each size takes; in between, what lies on straight lines."""

    sizes: tuple[int, ...]
    """K, ascending from 1."""
    start: tuple[float, ...]
    """With exits: what stands before the first layer and behind the last one."""
    layer: tuple[float, ...]
    """With exits: a layer, its head and the policy's score."""
    compaction: tuple[float, ...]
    """With exits: taking out those who leave, once."""
    cut_start: tuple[float, ...]
    """Of a model cut to some layers: what stands around them."""
    cut_layer: tuple[float, ...]
    """Of a model cut to some layers: a layer."""

    def of_cut(self, depth: int, size: int) -> float:
        """Seconds for a sample, in batches of `size`, of a model of `depth` layers."""
        return float(self._at(self.cut_start, size) + depth * self._at(self.cut_layer, size)) / size

    def of_exits(self, layers: NDArray[np.int64], num_layers: int, size: int) -> float:
        """Seconds for a sample, in batches of `size`, of N samples that leave at these layers, 0 … L − 1, and come in
        this order; of fewer than `size` samples those are repeated."""
        rows = np.resize(layers, max(1, len(layers) // size) * size).reshape(-1, size)
        remain = (rows[:, :, None] >= np.arange(num_layers)).sum(axis=1)
        changes = (np.diff(remain, axis=1) < 0) & (remain[:, 1:] > 0)
        seconds = self._at(self.start, size) + np.where(remain > 0, self._at(self.layer, remain), 0).sum(axis=1)
        seconds += np.where(changes, self._at(self.compaction, remain[:, 1:]), 0).sum(axis=1)
        return float(seconds.mean()) / size

    def _at(self, values: tuple[float, ...], rows: Any) -> NDArray[np.float64]:
        return np.asarray(np.interp(rows, self.sizes, values))


def full_batches(batches: Sequence[Batch]) -> list[Batch]:
    """Those of as many samples as the largest."""
    samples = [len(next(iter(batch.values()))) for batch in batches]
    return [batch for batch, size in zip(batches, samples, strict=True) if size == max(samples)]


def batch_sizes(most: int) -> tuple[int, ...]:
    """1, 2, 4 … below `most`, and `most`."""
    return (*(2**power for power in range((most - 1).bit_length())), most)


def measure_costs(
    backbone: Backbone,
    head: Head,
    policy: Policy,
    cut: Callable[[int], Callable[[Batch], object]],
    batches: Sequence[Batch],
    *,
    rounds: int = 5,
) -> Costs:
    """The costs on this machine, of batches of 1, 2, 4 … samples: the first of those given.

    With exits, a batch is timed of which all leave at layer 1, one of which all leave at layer L, and one that loses a
    sample at each layer, in turns; and the model cut to one layer and to all.

    Args:
        backbone: of a classifier, L from 2.
        head: of its layers.
        policy: whose scores are computed.
        cut: gives what runs a model of so many layers.
        batches: on the model's device; of those of one shape the first is taken.
        rounds: of which the quickest counts, as the others were disturbed.

    Raises:
        UserError: a model of one layer, which has nowhere to leave.
    """
    last = backbone.num_layers - 1
    if last < 1:
        raise UserError("Exits of a model of one layer save nothing, and there is nothing to plan.")
    scheduled = Scheduled(policy)
    early_exit = EarlyExit(backbone, head, scheduled, 1.0)
    chosen = full_batches(batches)[:_BATCHES]
    most = len(next(iter(chosen[0].values())))
    shapes = {tuple(value.shape[1:] for value in batch.values()) for batch in chosen}
    chosen = chosen[:1] if len(shapes) == 1 else chosen
    one, whole, sizes = cut(1), cut(last + 1), batch_sizes(most)
    found: list[tuple[float, ...]] = []
    for size in sizes:
        rows = [{key: value[:size] for key, value in batch.items()} for batch in chosen]
        device = next(iter(rows[0].values())).device
        number = torch.arange(size, device=device)
        stay = min(size - 1, last)  # the samples that leave one after the other
        plans = [torch.zeros_like(number), torch.full_like(number, last), torch.where(number < stay, number, last)]

        def leave(batch: Batch, plan: Tensor) -> None:
            scheduled.plan(plan)
            early_exit(batch)

        runs = [one, whole, *(lambda batch, plan=plan: leave(batch, plan) for plan in plans)]
        cut_one, cut_all, first, full, staggered = (seconds / len(rows) for seconds in quickest(runs, rows, rounds))
        layer = (full - first) / last
        cut_layer = (cut_all - cut_one) / last
        found.append((first - layer, layer, staggered, cut_one - cut_layer, cut_layer))
    start, layers, staggered_all, cut_start, cut_layers = zip(*found, strict=True)
    compaction = [0.0]
    for place, size in list(enumerate(sizes))[1:]:
        remain = size - np.minimum(np.arange(last + 1), min(size - 1, last))
        others = start[place] + np.interp(remain, sizes, layers).sum()
        compaction.append(float(staggered_all[place] - others) / min(size - 1, last))
    return Costs(sizes, start, layers, tuple(compaction), cut_start, cut_layers)


@dataclass(frozen=True)
class Way:
    """One way to answer, at the accuracy asked for or above."""

    name: str
    """`all layers`, `exits`, `truncation` or `removal`."""
    accuracy: float
    layers: float
    """Computed for a sample, on average."""
    threshold: float | None
    """Of exits."""
    seconds: list[float]
    """(K,) for a sample, predicted, in batches of each size."""


@dataclass(frozen=True)
class ExitPlan:
    """Which way is fastest at an accuracy, and from where on exits pay."""

    asked: float
    """The accuracy asked for."""
    sizes: list[int]
    """K batch sizes."""
    ways: list[Way]
    """All layers first; those that reach the accuracy."""
    pays_from: int | None
    """The least batch from which on exits at the accuracy are faster than all layers; None: at no size."""
    pays_up_to: float | None
    """In the largest batch: the greatest accuracy of exits that are faster than all layers."""


def plan_exits(
    table: ExitTable, thresholds: Sequence[float], costs: Costs, asked: float, cuts: Mapping[str, tuple[int, float]]
) -> ExitPlan:
    """Predicts every way's seconds.

    Args:
        table: of the samples that exits are chosen on, in the order they are read in.
        thresholds: of the policy, ascending.
        costs: of this machine.
        asked: the least accuracy, as that of all layers less what may be lost.
        cuts: by name, how many layers another way computes, and its accuracy on the samples.
    """
    num_layers = len(table.scores)
    counts = exit_counts(
        table.scores, table.predictions, table.targets, torch.tensor(list(thresholds), dtype=torch.float32)
    )
    means, accuracies = along_exits(*counts)
    whole = float((table.predictions[-1] == table.targets).double().mean())

    def seconds(threshold: float | None, size: int) -> float:
        return costs.of_exits(exit_layer(table.scores, threshold).numpy(), num_layers, size)

    ways = [Way("all layers", whole, num_layers, None, [costs.of_cut(num_layers, size) for size in costs.sizes])]
    good = (accuracies >= asked - 1e-9).nonzero()
    pays_from = None
    if len(good):
        place = int(good[0])
        threshold = float(thresholds[place])
        told = float(accuracies[place]), float(means[place]), threshold
        ways.append(early := Way("exits", *told, [seconds(threshold, size) for size in costs.sizes]))
        lost = [size for size, a, b in zip(costs.sizes, early.seconds, ways[0].seconds, strict=True) if a >= b]
        later = [size for size in costs.sizes if size > max(lost, default=0)]
        pays_from = min(later, default=None)
    for name, (depth, accuracy) in cuts.items():
        if accuracy >= asked - 1e-9 and depth < num_layers:
            ways.append(Way(name, accuracy, depth, None, [costs.of_cut(depth, size) for size in costs.sizes]))
    most = costs.sizes[-1]
    spread = range(0, len(thresholds), ceil(len(thresholds) / 100))
    pays = [
        float(accuracies[place]) for place in spread if seconds(float(thresholds[place]), most) < ways[0].seconds[-1]
    ]
    return ExitPlan(asked, list(costs.sizes), ways, pays_from, max(pays, default=None))
