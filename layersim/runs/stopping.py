"""A training that a signal or a scheduler asks to end finishes its step, saves, and says how it goes on."""

import os
import shlex
import signal
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from layersim.errors import UserError, reason
from layersim.evaluation import reduced
from layersim.runs.resume import keep_finished
from layersim.runs.signals import ENDING, Stopped, handle, next_sigint_ends, restore
from layersim.runs.whole_checkpoints import newest_whole

STOPPED_FILE = "stopped.ckpt"
_LOOKS = 8
"""Of so many validation batches one looks, where processes have to agree."""


class StopOnSignal(Callback):
    """On SIGINT, SIGTERM or SIGHUP training ends after the optimizer step that it is in, on all processes after the
    same one, and in a validation after the batch; `checkpoints/stopped.ckpt` in the run's directory goes on from there.
    Then `Stopped` is raised, and the status is 128 and the signal's number. A second SIGINT ends at once.

    Under SLURM, the signal of Lightning's `SLURMEnvironment(auto_requeue=True)` does the same, and has the job queued
    again. Where no callback saves checkpoints, this one does not either. It takes the place of Lightning's handlers,
    which save in the middle of a step, and talk to other processes there.
    """

    def __init__(self) -> None:
        self.received = 0
        """The signal that asks to end."""
        self._requeue_signal: int | None = None
        self._training = False
        self._stopping = False
        self._leaving = False
        self._saved: Path | None = None
        self._before: dict[int, Any] = {}
        self._shared: list[float] = []
        """Validation batches that every process has, by loader."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        environment = trainer._accelerator_connector.cluster_environment
        requeued = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        self._requeue_signal = environment.requeue_signal if requeued else None  # type: ignore[attr-defined]
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        numbers = (*ENDING, *([self._requeue_signal] if self._requeue_signal else []))
        self._before = handle(numbers, lambda number: self._receive(trainer, number)) | self._before

    def _receive(self, trainer: Trainer, number: int) -> None:
        next_sigint_ends()
        if self._leaving:
            return
        first, self.received = not self.received, self.received or number
        if not self._training:
            self._raise(trainer)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises where a loader's worker dies of the same signal
        if first and trainer.is_global_zero:  # not by print: a signal may come while something is printed
            told = f"{signal.Signals(number).name}: training ends after this step. Ctrl-C ends it at once."
            os.write(2, f"layersim: {told}\n".encode())

    def _agreed(self, trainer: Trainer) -> bool:
        """Whether any process was asked to end; to be called by all of them."""
        number = self.received
        if trainer.world_size > 1:
            own = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(reduced(own, "max"))
        self.received = self.received or number
        return bool(number)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **more: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        reached = trainer.global_step == trainer.max_steps  # then nothing is left to go on with
        if self._agreed(trainer) and not loop._should_accumulate() and not reached:
            self._save(trainer)
            self._stopping = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **more: Any) -> None:
        if self._stopping:  # here, as by now the last step has been logged
            self._leave(trainer)

    on_train_epoch_end = on_train_batch_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._stopping:
            self._leave(trainer)
        if self._training and trainer.world_size > 1:
            own = torch.tensor(trainer.num_val_batches, device=trainer.strategy.root_device)
            self._shared = reduced(own, "min").tolist()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self._training or any(isinstance(call, WeightAveraging) for call in trainer.callbacks):  # type: ignore[attr-defined]
            return  # that of averages has them in the model's place until validation ends
        if trainer.world_size > 1 and (batch_idx % _LOOKS or not batch_idx < self._shared[dataloader_idx] < inf):
            return
        if self._agreed(trainer) and not trainer.fit_loop.epoch_loop._should_accumulate():
            self._save(trainer)
            self._leave(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        keep_finished(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.checkpoint_callbacks:
            path = Path(trainer.default_root_dir) / "checkpoints" / STOPPED_FILE
            trainer.save_checkpoint(trainer.strategy.broadcast(path), weights_only=False)
            self._saved = path

    def _leave(self, trainer: Trainer) -> None:
        self._leaving = True
        self._raise(trainer)

    def _raise(self, trainer: Trainer) -> None:
        if self.received == self._requeue_signal and trainer.is_global_zero:
            _requeue()
        raise Stopped(self.received)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says where a training that was stopped is kept, and how it goes on."""
        self._training = False
        fell = f" by {reason(exception)}" if self.received and not isinstance(exception, Stopped | UserError) else ""
        if trainer.state.fn != TrainerFn.FITTING or not (fell or isinstance(exception, Stopped)):
            self.teardown(trainer, pl_module, "")
            return
        directory = Path(trainer.default_root_dir)
        recipe = directory / "config.yaml"
        words, kept = ["--config", str(recipe)], "no checkpoint had been written yet; it starts anew"
        if trainer.is_global_zero and (newest := self._saved or newest_whole(directory / "checkpoints")):
            words, kept = ["--resume", str(directory)], f"{newest} is whole; it goes on"
        # a training in Python has no recipe, and one that had not begun none yet
        by = f" by `{shlex.join(['layersim', 'fit', *words])}`" if recipe.exists() else ""
        name = exception.name if isinstance(exception, Stopped) else signal.Signals(self.received).name
        rank_zero_info(
            f"Stopped by {name} in epoch {trainer.current_epoch}, step {trainer.global_step}"
            f"{fell and f', which was cut off{fell}'}: {kept}{by}."
        )
        if isinstance(exception, Stopped):
            exception.told = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        restore(self._before)
        self._before = {}


@contextmanager
def stopped_first(trainer: Trainer) -> Iterator[None]:
    """Around a run: an exception after a signal, which may have ended what the run needs (a loader's workers), is a
    `Stopped`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for number in [call.received for call in callbacks if isinstance(call, StopOnSignal) and call.received]:
            stopped = Stopped(number)
            stopped.told = trainer.state.fn == TrainerFn.FITTING
            raise stopped from error
        raise


def _requeue() -> None:
    """Has SLURM queue this job again."""
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        warnings.warn(f"SLURM did not queue the job {job} again: {error}. Submit it anew.", stacklevel=2)
