"""What the command shows of Lightning on a terminal: one line of progress, and nothing that is not about the run."""

import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from datasets import disable_progress_bars
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, RichProgressBar
from rich.progress import ProgressColumn, Task, TimeRemainingColumn
from rich.table import Column
from rich.text import Text
from transformers.utils.logging import disable_progress_bar

_NOT_SAID = (
    "💡 Tip:",  # Lightning's advertisements: of litlogger at every Trainer, of litmodels at every first checkpoint
    "TPU available:",  # always False here: the measures' sums need float64
    "Loading `train_dataloader` to estimate",  # our schedule's question, which costs and changes nothing
    "GPU available:",  # the first screen tells the device; a GPU that is not used has a warning of its own
    "Seed set to",  # the first screen tells it, too
    "`Trainer.fit` stopped: `max_epochs=",  # as was asked for
    "Restoring states from the checkpoint",  # the first screen tells whose weights are taken
    "Restored all states from",
    "Loaded model weights from",
)
"""How messages begin that tell nothing of a run."""


def quiet() -> None:
    """Leaves out what the libraries say at every start without there being anything to know or to do, and where in the
    code a warning was given."""
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec", FutureWarning)  # Lightning's, on torch 2.15
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.seed"):
        logging.getLogger(f"lightning.{name}").addFilter(_worth_saying)
    warnings.filterwarnings("ignore", ".*smaller than the logging interval")  # each epoch's mean is logged anyway
    warnings.filterwarnings("ignore", "The dirpath has changed")  # a run that goes on has a directory of its own
    if not os.environ.get("LAYERSIM_DEBUG"):
        warnings.formatwarning = lambda message, category, *_, **__: f"{category.__name__}: {message}\n"
    threading.excepthook = _unless_told_elsewhere
    disable_progress_bar()  # of weights that are read or written in a moment; what is fetched has a bar of the hub's
    disable_progress_bars()  # of data sets that are brought into datasets' own form; what is fetched has one too


@contextmanager
def unsaid(*starts: str) -> Iterator[None]:
    """In here, what begins so is not said."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def others(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(starts)

    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


def in_few_lines(callbacks: Sequence[Callback], given: Sequence[Callback]) -> list[Callback]:
    """A trainer's callbacks, Lightning's own bar in our form and without its table of the model, which the first screen
    tells in a line; those that were given stay."""
    kept = [call for call in callbacks if call in given or not isinstance(call, ModelSummary)]
    return [ProgressLine() if type(call) is RichProgressBar and call not in given else call for call in kept]


class ProgressLine(RichProgressBar):
    """Lightning's bar on one line: where the terminal is narrow the bar gives way, and names are as short as they can
    be without becoming alike (`loss` of the step, `accuracy` of the last validation)."""

    _metrics = ""

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        description, bar, *_ = super().configure_columns(trainer)
        return [
            description,
            bar,
            _Whole(lambda task: f"{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)),
            _Whole(lambda task: f"{task.speed or 0:.2f}it/s"),
            _Whole(lambda task: self._metrics if task.id == self.train_progress_bar_id else ""),
        ]

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Nothing for Lightning's own column, which may break into lines; ours shows what there is."""
        shown = {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
        short = {name: name.rpartition("/")[2].removesuffix("_step") for name in shown}
        names = {name: one if [*short.values()].count(one) == 1 else name for name, one in short.items()}
        told = {names[name]: f"{value:.3f}" if isinstance(value, float) else value for name, value in shown.items()}
        self._metrics = " ".join(f"{name} {value}" for name, value in told.items())
        return {}


class _Whole(ProgressColumn):
    """A column that never breaks into lines."""

    def __init__(self, say: Callable[[Task], str]) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.say = say

    def render(self, task: Task) -> Text:
        return Text(self.say(task))


def _unless_told_elsewhere(what: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer raises again, where something is logged, what ended its thread."""
    if not type(what.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(what)


def _worth_saying(record: logging.LogRecord) -> bool:
    return not re.sub(r"^\[rank: \d+\] ", "", str(record.msg)).startswith(_NOT_SAID)
