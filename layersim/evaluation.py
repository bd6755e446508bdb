"""Whole splits, collected from an evaluation epoch on any number of processes, in the order of the split.

Letters: L layers, N samples, D width.
"""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from layersim.exits import ExitTable, Policy, exit_table, fit_temperatures, join_tables
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


class Tables(Collector):
    """What a policy knows of samples at every layer, from one reading of the data.

    Where temperatures are to be fitted, which must come before any score is taken, the features of all samples wait for
    that on the host: 4 L N D bytes in float32 (12 layers, 50 000 samples of width 768: 1.8 GB).

    Args:
        policy: whose scores are taken.
        fitted: ascending positions of the samples that a temperature of each layer is fitted on; the others are
            tabulated, or all where None, without temperatures.
    """

    def __init__(self, policy: Policy, fitted: Tensor | None = None) -> None:
        self.policy = policy
        self.fitted = fitted
        self.temperatures: Tensor | None = None
        """(L,) of the layers, once the data have been read."""
        self._waiting: list[LayerFeatures] = []
        self._positions: list[Tensor] = []
        self._tables: list[ExitTable] = []

    def take(self, module: Any, output: LayerOutput) -> None:
        features = output.features
        assert features.targets is not None
        assert features.position is not None
        if self.fitted is None:
            self._tabulate(module, features)
        else:
            self._waiting.append(LayerFeatures(features.values.cpu(), features.targets.cpu(), features.position))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.fitted is None:
            return
        rank_zero_info(f"Fitting a temperature for each layer on {len(self.fitted)} samples.")
        wanted = [_rows(batch, self.fitted) for batch in self._waiting]
        self.temperatures = fit_temperatures(pl_module.head, _joined([part for part, _ in wanted]))  # type: ignore[arg-type]
        self._waiting = []
        for _, rest in wanted:
            if len(rest.values[0]):
                self._tabulate(pl_module, rest)

    on_test_epoch_end = on_validation_epoch_end

    def _tabulate(self, module: Any, features: LayerFeatures) -> None:
        assert features.position is not None
        assert features.targets is not None
        self._positions.append(features.position)
        there = LayerFeatures(features.values.to(module.device), features.targets.to(module.device))
        with module.trainer.precision_plugin.forward_context():  # read as the run's other steps read
            self._tables.append(exit_table(module.head, there, self.policy, self.temperatures))

    def collected(self) -> ExitTable:
        """The table of all processes' samples, in the order of their positions."""
        return join_tables(everywhere(self._tables)).select(torch.cat(everywhere(self._positions)).argsort())


def _rows(batch: LayerFeatures, wanted: Tensor) -> tuple[LayerFeatures, LayerFeatures]:
    """The samples of a batch at the wanted positions, and the others."""
    assert batch.targets is not None
    assert batch.position is not None
    among = torch.isin(batch.position, wanted)
    one, other = (
        LayerFeatures(batch.values[:, rows], batch.targets[rows], batch.position[rows]) for rows in (among, ~among)
    )
    return one, other


def _joined(parts: list[LayerFeatures]) -> LayerFeatures:
    """The (L, N, D) features of all processes, in the order of their positions."""
    parts = everywhere(parts)
    order = torch.cat([part.position for part in parts if part.position is not None]).argsort()
    targets = torch.cat([part.targets for part in parts if part.targets is not None])
    return LayerFeatures(torch.cat([part.values for part in parts], dim=1)[:, order], targets[order])


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
