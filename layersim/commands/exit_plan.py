"""`layersim exits --plan`: whether exits, fewer layers or removed blocks answer soonest, at which batch."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from layersim import export
from layersim.data import SplitDataModule
from layersim.errors import UserError
from layersim.evaluation import evaluating
from layersim.exits import EarlyExit, ExitTable, measure_costs, plan_exits
from layersim.exits.plan import full_batches
from layersim.exits.policies import exit_layer
from layersim.exits.speed import Batch, quickest
from layersim.export.truncation import library_of
from layersim.module import LayerwiseModule

_TRAINING_BATCHES = 50
"""So many are looked at to choose the blocks that go."""


def plan_of(
    model: LayerwiseModule,
    datamodule: SplitDataModule,
    table: ExitTable,
    thresholds: Sequence[float],
    batches: Sequence[Batch],
    asked: float,
    split: str,
    chosen: EarlyExit,
) -> dict[str, Any]:
    """The plan for an accuracy, `asked`, as a report holds it: of costs that are measured on these batches of the
    split, on the model's device; the seconds of the `chosen` exits are predicted, and then measured."""
    num_layers = model.num_layers
    rank_zero_info("Planning: timing a layer, a head and taking samples out of a batch, at each batch size.")
    costs = measure_costs(model.backbone, model.head, chosen.policy, partial(_cut_to, model), batches)
    accuracies = (table.predictions == table.targets).double().mean(dim=1).tolist()
    depth = next((layer for layer, each in enumerate(accuracies, start=1) if each >= asked), num_layers)
    cuts = {"truncation": (depth, accuracies[depth - 1])}
    try:
        cuts["removal"] = _removed(model, datamodule, asked, split)
    except UserError as error:
        rank_zero_info(f"The plan leaves the removal of blocks out: {error}")
    plan = plan_exits(table, thresholds, costs, asked, cuts)
    full, size = full_batches(batches), costs.sizes[-1]
    predicted = costs.of_exits(exit_layer(table.scores, chosen.threshold).numpy(), num_layers, size)
    (measured,) = quickest([chosen], full, rounds=5)
    return asdict(plan) | {"predicted": predicted, "measured": measured / len(full) / size}


def _cut_to(model: LayerwiseModule, depth: int) -> Callable[[Batch], object]:
    """What runs the model cut to a depth: one of its own library, where that can be built."""
    backbone, head, library = model.backbone, model.head, library_of(model.backbone)
    try:
        cut = export.truncate(backbone, head, depth)
    except UserError as error:
        rank_zero_info(f"The plan takes the time of {depth} layers from the whole model: {error}")
        cut = None

    def run(batch: Batch) -> object:
        with evaluating(backbone, head), torch.inference_mode():
            if cut is not None:
                return library.logits(cut, batch).argmax(dim=-1)
            return head.logits(backbone(batch, [depth - 1]).values, [depth - 1]).argmax(dim=-1)

    return run


def _removed(model: LayerwiseModule, datamodule: SplitDataModule, asked: float, split: str) -> tuple[int, float]:
    """The fewest layers that removal leaves with the accuracy, and that accuracy; all where it leaves no fewer."""
    backbone, head, num_layers = model.backbone, model.head, model.num_layers
    changes = export.feature_changes(backbone, islice(datamodule.train_dataloader(), _TRAINING_BATCHES))
    found = num_layers, 1.0
    for blocks in range(1, num_layers):
        loader = datamodule.val_dataloader() if split == "val" else datamodule.test_dataloader()
        trial = export.try_removal(backbone, head, export.propose_removal(changes, blocks), loader)
        if trial.measured.accuracy < asked:
            break
        found = num_layers - blocks, trial.measured.accuracy
    return found
