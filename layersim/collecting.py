"""Whole splits, collected from an evaluation epoch on any number of processes, in the order of the split.

Letters: L layers, N samples, D width.
"""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from layersim.exits import ExitTable, Policy, exit_table, join_tables
from layersim.metrics import LayerAccuracy
from layersim.outputs import LayerFeatures, LayerOutput


class Collector(Callback):
    """Takes what each evaluation step returned, of validation and test alike."""

    def take(self, module: Any, output: LayerOutput) -> None:
        """One batch."""

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        with torch.no_grad():
            self.take(pl_module, outputs)

    on_test_batch_end = on_validation_batch_end


class Rows(Collector):
    """Those samples of a split whose positions are wanted.

    Args:
        wanted: ascending positions in the split; all where None.
    """

    def __init__(self, wanted: Tensor | None = None) -> None:
        self.wanted = wanted
        self.positions: list[Tensor] = []

    def take(self, module: Any, output: LayerOutput) -> None:
        features = output.features
        assert features.position is not None
        rows = torch.arange(len(features.position))
        if self.wanted is not None:
            rows = rows[torch.isin(features.position, self.wanted)]
        if len(rows):
            self.positions.append(features.position[rows])
            self.keep(module, features, rows.to(features.values.device))

    def keep(self, module: Any, features: LayerFeatures, rows: Tensor) -> None:
        """Keeps those rows of a batch, on the host."""

    def order(self) -> Tensor:
        """(N,) where the kept samples of all processes, joined, lie by their position."""
        return torch.cat(everywhere(self.positions)).argsort()


class Features(Rows):
    """The features of samples, with their targets."""

    def __init__(self, wanted: Tensor | None = None) -> None:
        super().__init__(wanted)
        self.values: list[Tensor] = []
        self.targets: list[Tensor] = []

    def keep(self, module: Any, features: LayerFeatures, rows: Tensor) -> None:
        assert features.targets is not None
        self.values.append(features.values[:, rows].cpu())
        self.targets.append(features.targets[rows].cpu())

    def collected(self) -> LayerFeatures:
        """(L, N, D) features of all processes."""
        order = self.order()
        values, targets = torch.cat(everywhere(self.values), dim=1), torch.cat(everywhere(self.targets))
        return LayerFeatures(values[:, order], targets[order])


class Tables(Rows):
    """What a policy knows of samples at every layer.

    Args:
        policy: whose scores are taken.
        temperatures: (L,) of the layers; ones where None.
        wanted: see Rows.
    """

    def __init__(self, policy: Policy, temperatures: Tensor | None, wanted: Tensor | None = None) -> None:
        super().__init__(wanted)
        self.policy = policy
        self.temperatures = temperatures
        self.tables: list[ExitTable] = []

    def keep(self, module: Any, features: LayerFeatures, rows: Tensor) -> None:
        assert features.targets is not None
        part = LayerFeatures(features.values[:, rows], features.targets[rows])
        with module.trainer.precision_plugin.forward_context():  # read as the run's other steps read
            self.tables.append(exit_table(module.head, part, self.policy, self.temperatures))

    def collected(self) -> ExitTable:
        """The table of all processes' samples."""
        order = self.order()
        return join_tables(everywhere(self.tables)).select(order)


class Accuracies(Collector):
    """The accuracy of every layer."""

    def __init__(self, num_layers: int) -> None:
        self.metric = LayerAccuracy(num_layers)

    def take(self, module: Any, output: LayerOutput) -> None:
        self.metric.to(output.features.values.device).update(output)

    def collected(self) -> list[float]:
        """L shares, over all processes."""
        accuracies: list[float] = self.metric.compute().tolist()
        return accuracies


def everywhere(parts: list[Any]) -> list[Any]:
    """The parts of every process, those of the first one first."""
    if not (dist.is_available() and dist.is_initialized()):
        return parts
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, parts)
    return [part for of_one in gathered for part in of_one]
