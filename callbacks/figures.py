"""Figures of a run: drawn while it goes on, saved in its directory, handed to its loggers."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from callbacks.loggers import Moment, dispensable, validates_within_epochs
from layersim.report.drawing.pictures import Picture, drawn_later

WAITING = 4
"""So many figures of one name may wait to be drawn."""


@dataclass(frozen=True)
class Figure:
    """One that was asked for: its name, where it is saved, of which epoch and step it is, and what becomes of it."""

    name: str
    path: Path
    epoch: int
    step: int
    drawn: Future[None]


class Figures:
    """What a callback draws, for rank zero alone. Nobody waits for it before the run ends: a figure is logged, at its
    own epoch and step, when the next ones are asked for. Where epochs are shorter than drawing takes, at most
    `WAITING` of a name wait, the newest, and a line tells at the end how many were left out."""

    def __init__(self) -> None:
        self._asked: list[Figure] = []
        self._left_out = 0

    def add(self, trainer: Trainer | Moment, name: str, picture: Picture) -> None:
        """Has a figure drawn as `figures/<name>-epoch-<n>.png` in the run's directory, with the step behind it where a
        training validates within epochs, and logged."""
        step = f"-step-{trainer.global_step:06d}" if validates_within_epochs(trainer) else ""
        file = f"{name.replace('/', '-')}-epoch-{trainer.current_epoch:04d}{step}.png"
        path = Path(trainer.default_root_dir) / "figures" / file
        self._hand_on(trainer.loggers, [one for one in self._asked if one.drawn.done()])
        self._give_up([one for one in self._asked if one.name == name][: 1 - WAITING])
        with dispensable("Figures", path.parent):
            path.parent.mkdir(exist_ok=True)  # and none above: a run's directory that is gone stays so
            drawn = drawn_later(picture, path)
            self._asked.append(Figure(name, path, trainer.current_epoch, trainer.global_step, drawn))

    def finish(self, trainer: Trainer | Moment, *, in_haste: bool = False) -> None:
        """Waits for what is left; in haste for the newest of each name alone."""
        if in_haste:
            newest = {one.name: one for one in self._asked}
            self._give_up([one for one in self._asked if newest[one.name] is not one])
        self._hand_on(trainer.loggers, [*self._asked])
        if self._left_out:
            rank_zero_info(f"{self._left_out} figures of earlier epochs are left out: epochs are shorter than drawing.")
        self._left_out = 0

    def _give_up(self, figures: Sequence[Figure]) -> None:
        for one in figures:
            if one.drawn.cancel():  # not one that is being drawn
                self._asked.remove(one)
                self._left_out += 1

    def _hand_on(self, loggers: Sequence[Any], figures: Sequence[Figure]) -> None:
        for one in figures:
            self._asked.remove(one)
            with dispensable("Figures", one.path.parent):
                one.drawn.result()
                for logger in loggers:
                    _log_image(logger, one)


def _log_image(logger: Any, figure: Figure) -> None:
    if isinstance(logger, WandbLogger):
        import wandb

        image = {figure.name: wandb.Image(str(figure.path)), "epoch": figure.epoch}
        logger.log_metrics(image, step=figure.step)
    elif isinstance(logger, TensorBoardLogger):
        with Image.open(figure.path) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        logger.experiment.add_image(figure.name, pixels, figure.step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_artifact(logger.run_id, str(figure.path), "figures")
    elif hasattr(logger, "log_figure"):  # of another loop's
        logger.log_figure(figure)
