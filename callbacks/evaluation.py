"""One set of hooks for validation and test."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from layersim.errors import UserError
from layersim.module import LayerwiseModule
from layersim.report.records import Stage


def layerwise(pl_module: LightningModule) -> LayerwiseModule:
    """The module as one of ours; a UserError where it is none."""
    if not isinstance(pl_module, LayerwiseModule):
        raise UserError(
            f"layersim's callbacks read a LayerwiseModule, but got {type(pl_module).__name__}. Of another module "
            'name the parts that are measured, such as layers="net.blocks.*", norm="net.norm", head="net.head".'
        )
    return pl_module


def check_one_loader(batches: Sequence[float]) -> None:
    """Refuses several loaders, of which each has so many batches: their samples would be taken for one's."""
    if len(batches) > 1:
        raise UserError(
            f"Expected one loader, but got {len(batches)}: call trainer.validate, test or predict with each."
        )


def data_module(trainer: Trainer) -> Any:
    """What an evaluation reads, where it is a LightningDataModule: `trainer.datamodule` may be an earlier call's."""
    given = trainer.datamodule  # type: ignore[attr-defined]
    return given if trainer._evaluation_loop._data_source.instance is given else None


class EvaluationCallback(Callback):
    """A callback on the epochs of validation and test alike; the sanity check before training is passed over."""

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before an epoch's first batch."""

    def before(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before each batch's step."""

    def take(self, output: Any, batch: Any) -> None:
        """After each batch, with what the step returned; no gradients are kept."""

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """After an epoch's last batch, on every process; here numbers can be logged."""

    def end(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """After every callback's `finish`."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer._evaluation_loop._is_sequential:  # and does not give a batch of each at once
            check_one_loader(trainer.num_test_batches if trainer.testing else trainer.num_val_batches)
        self.start(trainer, pl_module)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **more: Any) -> None:
        if not trainer.sanity_checking:
            self.before(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **more: Any
    ) -> None:
        if not trainer.sanity_checking:
            with torch.no_grad():
                self.take(outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.finish(trainer, pl_module, "test" if trainer.testing else "validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.end(trainer, pl_module, "test" if trainer.testing else "validate")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
    on_test_end = on_validation_end
