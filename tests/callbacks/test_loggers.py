"""What W&B draws validation against, and what becomes of a page that it does not take."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.loggers import on_epoch_axis, send_outcome
from layersim.report.quantity import curve


class Defined(WandbLogger):
    """A logger that remembers what each metric shall be drawn against."""

    def __init__(self) -> None:
        self.axes: dict[str, str] = {}

    @property
    def experiment(self) -> Any:
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric


@pytest.mark.parametrize(
    ("verb", "options", "axis"),
    [
        (TrainerFn.FITTING, {"val_check_interval": 1.0, "check_val_every_n_epoch": 1}, "epoch"),
        (TrainerFn.FITTING, {"val_check_interval": 0.25, "check_val_every_n_epoch": 1}, "trainer/global_step"),
        (TrainerFn.FITTING, {"val_check_interval": 50, "check_val_every_n_epoch": None}, "trainer/global_step"),
        (TrainerFn.FITTING, {"check_val_every_n_epoch": 1}, "trainer/global_step"),  # by the clock
        (TrainerFn.VALIDATING, {"val_check_interval": 0.25, "check_val_every_n_epoch": 1}, "epoch"),
    ],
)
def test_validations_within_epochs_are_drawn_by_step(verb: TrainerFn, options: dict[str, Any], axis: str) -> None:
    logger = Defined()
    trainer: Any = SimpleNamespace(loggers=[logger], state=SimpleNamespace(fn=verb), **options)
    on_epoch_axis(trainer, ["val/accuracy"])
    assert logger.axes == {"val/accuracy": axis}


def test_a_page_that_wandb_cannot_copy_is_told_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its place for copies lies in the home folder, which a job need not be able to write to."""
    (page := tmp_path / "report.html").write_text("page")
    monkeypatch.setenv("WANDB_DATA_DIR", os.devnull)
    with caplog.at_level("INFO"):
        send_outcome(SimpleNamespace(id="x1"), page, {"accuracy": curve([0.5])})
    (line,) = caplog.messages
    assert line.startswith("W&B did not take the run's page (Unable to write staging files to")
    assert line.endswith(f"it lies in {page}.")
