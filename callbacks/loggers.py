"""What the callbacks hand to the trainer's loggers, whichever these are, and to the run's directory."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from layersim.report.quantity import LAYER, Quantity, curves


@dataclass(frozen=True)
class Moment:
    """Where and when something was measured by another loop than Lightning's, which figures ask for by the names that a
    trainer has for it."""

    default_root_dir: str
    current_epoch: int
    global_step: int
    within_epochs: bool
    """Whether the epoch says not enough."""
    loggers: Sequence[Any] = ()


def validates_within_epochs(trainer: Trainer | Moment) -> bool:
    """Whether a training validates several times an epoch, or by the clock, so that the epoch says not enough."""
    if isinstance(trainer, Moment):
        return trainer.within_epochs
    between = getattr(trainer, "val_check_interval", None) != 1.0 or trainer.check_val_every_n_epoch is None
    return trainer.state.fn == TrainerFn.FITTING and between


def on_epoch_axis(trainer: Trainer, names: list[str]) -> None:
    """Tells W&B to draw each of these against the epoch, or the step where that says not enough.

    Each by its exact name: WandbLogger has defined the glob `*`, and of two globs that match W&B takes one at random.
    """
    axis = "trainer/global_step" if validates_within_epochs(trainer) else "epoch"
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            for name in names:
                logger.experiment.define_metric(name, step_metric=axis)


def make_directory(trainer: Trainer) -> None:
    """Makes the run's directory, before the run: one that is deleted in the middle is not made again."""
    if trainer.is_global_zero:
        Path(trainer.default_root_dir).mkdir(parents=True, exist_ok=True)


@contextmanager
def dispensable(what: str, directory: Path) -> Iterator[None]:
    """Around the writing of what a run can do without: what the system refuses is a warning, shown once, and the run
    goes on."""
    try:
        yield
    except OSError as error:
        told = f"{what} cannot be written to {directory}, and the run goes on without: {error.strerror or error}."
        warnings.warn(told, stacklevel=1)  # always from here, so that Python shows it once


def log_outcome(trainer: Trainer, page: Path, measured: Mapping[str, Quantity]) -> None:
    """Hands over what a run came to, for rank zero alone: its page, to W&B as the artifact `report-<run id>`; and to
    W&B the table `layers`, a row a layer, counted from 1.

    A server that does not take them stops nothing: a line says so.
    """
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            send_outcome(logger.experiment, page, measured)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(page))


def send_outcome(run: Any, page: Path, measured: Mapping[str, Quantity]) -> None:
    """The same, to a W&B run."""
    import wandb

    artifact = wandb.Artifact(f"report-{run.id}", type="report")
    columns = {one.label: one.values for one in curves(measured).values()}
    rows = [[layer, *row] for layer, row in enumerate(zip(*columns.values(), strict=True), start=1)]
    try:
        artifact.add_file(str(page))  # which copies it to a place of W&B's
        run.log_artifact(artifact)
        run.log({"layers": wandb.Table(columns=["layer", *columns], data=rows)})
    except (wandb.Error, OSError) as error:
        rank_zero_info(f"W&B did not take the run's page ({error}); it lies in {page}.")


def logged(quantities: Mapping[str, Quantity]) -> Iterator[tuple[str, float]]:
    """Names and numbers for loggers: of a curve `name/layer_01` …, of a matrix `name_to_last/layer_01` …, of what runs
    over another axis and then layers the mean at each tick, `name_0`; and what stands for all layers as `name`."""
    for name, quantity in quantities.items():
        if (number := quantity.one_number) is not None:
            yield name, number
        if quantity.is_curve:
            yield from _by_layer(name, quantity.values)
        elif quantity.is_matrix:
            yield from _by_layer(f"{name}_to_last", [row[-1] for row in quantity.values])
        elif len(quantity.axes) == 2 and quantity.axes[1] == LAYER:
            ticks = quantity.ticks.get(quantity.axes[0], range(1, len(quantity.values) + 1))
            for tick, values in zip(ticks, quantity.values, strict=True):
                yield f"{name}_{tick}", sum(values) / len(values)  # of ∞ and −∞ NaN, where math.fsum raises


def _by_layer(name: str, values: list[float]) -> Iterator[tuple[str, float]]:
    yield from ((f"{name}/layer_{layer:02d}", float(value)) for layer, value in enumerate(values, start=1))
