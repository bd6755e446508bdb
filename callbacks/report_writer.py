"""The run's page, when the run ends."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.loggers import dispensable, log_outcome
from layersim.report.page import PAGE_FILE, write_page
from layersim.report.quantity import curves
from layersim.report.records import RECORDS_FILE, read_records


class ReportWriter(Callback):
    """Writes `report.html`, which opens in any browser, into the run's directory at the end of training or testing.

    W&B gets the page as an artifact, and the last measurements as a table.
    """

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        directory = Path(trainer.default_root_dir)
        if not trainer.is_global_zero or not (directory / RECORDS_FILE).exists():
            return
        last = read_records(directory / RECORDS_FILE)[-1]
        page = directory / PAGE_FILE
        with dispensable("The page", directory):
            write_page([directory], page, stage=last.stage)
            log_outcome(trainer, page, {name: one.values for name, one in curves(last.quantities).items()})
