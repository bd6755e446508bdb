"""What W&B draws validation against, and what becomes of figures that cannot be written."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.loggers import log_figure, on_epoch_axis


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


def test_figures_that_cannot_be_written_are_a_warning_and_a_directory_that_is_gone_stays_so(tmp_path: Path) -> None:
    options = {"val_check_interval": 1.0, "check_val_every_n_epoch": 1, "current_epoch": 0, "loggers": []}
    trainer: Any = SimpleNamespace(
        default_root_dir=str(tmp_path / "run"), state=SimpleNamespace(fn=TrainerFn.FITTING), **options
    )
    encoding = {"x": {"field": "x", "type": "quantitative"}}
    picture = {"mark": "point", "data": {"values": [{"x": 1}]}, "encoding": encoding}
    for name in ("val/cka", "val/accuracy"):  # the same words, so that Python shows them once
        with pytest.warns(UserWarning, match="Figures") as told:
            log_figure(trainer, name, picture)
        (warned,) = told
        place = tmp_path / "run/figures"
        assert str(warned.message) == (
            f"Figures cannot be written to {place}, and the run goes on without: No such file or directory."
        )
    assert not [*tmp_path.iterdir()]
    (tmp_path / "run").mkdir()
    log_figure(trainer, "val/cka", picture)
    assert (tmp_path / "run/figures/val-cka-epoch-0000.png").is_file()
