"""What verbs collect from an evaluation epoch of a trainer's. Letters: L layers, N samples, D width."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from layersim.data import SplitDataModule
from layersim.evaluation import Collector, everywhere
from layersim.exits import ExitTable, exit_table, fit_temperatures, join_tables
from layersim.exits.policies import Policy
from layersim.heads import Head
from layersim.outputs import LayerFeatures, LayerOutput


def quiet_trainer() -> Trainer:
    """One process, which records nothing."""
    return Trainer(
        devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )


def evaluate_epoch(
    trainer: Trainer,
    model: LightningModule,
    datamodule: SplitDataModule,
    *collectors: Collector,
    split: str = "val",
    ckpt_path: str | None = None,
) -> list[Any]:
    """As `layersim.evaluation.evaluate`, but as an epoch of a trainer's: on its device, in its precision, on all of its
    processes, and beside the callbacks that measure and record."""
    found: list[Any] = []

    def update(trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
        with torch.no_grad():
            for collector in collectors:
                collector.update(outputs)

    def end(trainer: Trainer, module: LightningModule) -> None:
        found.extend(collector.compute() for collector in collectors)

    stage, run = ("validation", trainer.validate) if split == "val" else ("test", trainer.test)
    hooks: dict[str, Any] = {f"on_{stage}_batch_end": update, f"on_{stage}_epoch_end": end}
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    trainer.callbacks = [*callbacks, LambdaCallback(**hooks)]  # type: ignore[attr-defined]
    try:
        run(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
    return found


class Tables:
    """Collects what a policy knows of samples at every layer, from one reading of the data.

    Where temperatures are to be fitted, which must come before any score is taken, the features of all samples wait for
    that on the host: 4 L N D bytes in float32 (12 layers, 50 000 samples of width 768: 1.8 GB).

    Args:
        head: what reads the features, on their device.
        policy: whose scores are taken.
        fitted: ascending positions of the samples that a temperature of each layer is fitted on; the others are
            tabulated, or all where None, without temperatures.
        precision: the context in which the run's other steps read.
    """

    def __init__(
        self,
        head: Head,
        policy: Policy,
        fitted: Tensor | None,
        precision: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.head, self.policy, self.fitted, self.precision = head, policy, fitted, precision
        self._waiting: list[LayerFeatures] = []
        self._tables: list[tuple[Tensor, ExitTable]] = []

    def update(self, output: LayerOutput) -> None:
        self._device = output.features.values.device
        if self.fitted is None:
            self._tabulate(output.features, None)
        else:
            self._waiting.append(_rows(output.features, slice(None), torch.device("cpu")))

    def compute(self) -> tuple[ExitTable, Tensor | None]:
        """The table of all processes' samples, in the order of their positions, and the layers' (L,) temperatures."""
        temperatures = None
        if self.fitted is not None:
            rank_zero_info(f"Fitting a temperature for each layer on {len(self.fitted)} samples.")
            among = [torch.isin(_position(batch), self.fitted) for batch in self._waiting]
            wanted = everywhere([_rows(batch, rows) for batch, rows in zip(self._waiting, among, strict=True)])
            order = torch.cat([_position(part) for part in wanted]).argsort()
            targets = torch.cat([part.targets for part in wanted if part.targets is not None])
            values = torch.cat([part.values for part in wanted], dim=1)
            temperatures = fit_temperatures(self.head, LayerFeatures(values[:, order], targets[order]))
            for batch, rows in zip(self._waiting, among, strict=True):
                if not rows.all():
                    self._tabulate(_rows(batch, ~rows, self._device), temperatures)
            self._waiting = []
        positions, tables = zip(*everywhere(self._tables), strict=True)
        return join_tables(list(tables)).select(torch.cat(positions).argsort()), temperatures

    def _tabulate(self, features: LayerFeatures, temperatures: Tensor | None) -> None:
        with self.precision():
            self._tables.append((_position(features), exit_table(self.head, features, self.policy, temperatures)))


class Ends:
    """Collects the features of the first and the last layer, by which inputs of two kinds are told apart: (N, 2 D) on
    the host, in the order of the samples' positions."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor]] = []

    def update(self, output: LayerOutput) -> None:
        ends = output.features.values[[0, -1]].transpose(0, 1).flatten(1)
        self._parts.append((_position(output.features), ends.float().cpu()))

    def compute(self) -> Tensor:
        positions, ends = zip(*everywhere(self._parts), strict=True)
        return torch.cat(ends)[torch.cat(positions).argsort()]


def _position(features: LayerFeatures) -> Tensor:
    assert features.position is not None
    return features.position


def _rows(batch: LayerFeatures, rows: Tensor | slice, device: torch.device | None = None) -> LayerFeatures:
    """These samples of a batch, on a device."""
    assert batch.targets is not None
    return LayerFeatures(
        batch.values[:, rows].to(device=device), batch.targets[rows].to(device=device), _position(batch)[rows]
    )
