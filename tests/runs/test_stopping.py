"""A training that a signal asks to end goes on, from what it saved, to the very numbers of one that nobody stopped."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from layersim.optimization.schedules import ReduceLROnPlateau
from layersim.runs.signals import handle, restore
from layersim.runs.stopping import STOPPED_FILE, StopOnSignal
from layersim.runs.whole_checkpoints import is_whole
from tests.runs.test_exact_resume import differing, fit


class Signal(Callback):
    """Sends this process a signal, once, within a hook of this name."""

    def __init__(self, hook: str, batch: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.number: signal.Signals | None = number
        setattr(self, hook, partial(self._send, hook=hook, batch=batch))

    def _send(self, trainer: Trainer, pl_module: LightningModule, *args: Any, hook: str, batch: int) -> None:
        due = trainer.fit_loop.total_batch_idx == batch and not trainer.sanity_checking
        if self.number is not None and due:
            number, self.number = self.number, None
            os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = handle(signal.valid_signals() & {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}, print)
    yield
    restore(before)


PLATEAU = partial(ReduceLROnPlateau, monitor="val/accuracy", mode="min", patience=0)
START = "on_train_batch_start"
CASES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    # the hook in which the signal comes, the batch of the whole training that is then the last begun, the step that
    # is saved, and the options
    "in a step": (START, 14, 15, {}),
    "two workers": (START, 14, 15, {"workers": 2}),
    "in a group of three batches": (START, 15, 6, {"accumulate_grad_batches": 3}),
    "in an epoch's last group, of one": (START, 20, 8, {"accumulate_grad_batches": 3}),
    "in the last step of all": (START, 32, 33, {}),
    "in the last step of an epoch without validation": (START, 10, 11, {"limit_val_batches": 0}),
    "before a validation within the epoch": (START, 15, 16, {"val_check_interval": 0.5}),
    "in a validation within the epoch": ("on_validation_batch_start", 15, 16, {"val_check_interval": 0.5}),
    "in a validation": ("on_validation_batch_start", 21, 22, {"limit_val_batches": 3}),
    "at a validation's end": ("on_validation_epoch_end", 21, 23, {}),
    "a plateau, in a validation": ("on_validation_batch_start", 21, 22, {"lr_scheduler": PLATEAU}),
    "max_steps": (START, 14, 15, {"max_steps": 27}),
}
_unbroken: dict[str, Any] = {}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("case", CASES)
def test_a_stopped_training_ends_as_an_unbroken_one(case: str, tmp_path: Path) -> None:
    hook, batch, step, options = CASES[case]
    same = str({key: value for key, value in options.items() if key != "workers"})
    if same not in _unbroken:
        _unbroken[same] = fit(tmp_path / "unbroken", kill=None, **{**options, "workers": 0})
    unbroken, order = _unbroken[same]
    stopped, begun = fit(tmp_path / "stopped", kill=None, callbacks=[Signal(hook, batch), StopOnSignal()], **options)
    path = tmp_path / "stopped" / "checkpoints" / STOPPED_FILE
    assert is_whole(path) is None  # Lightning's own way to save; the command takes ours
    assert torch.load(path, weights_only=True)["global_step"] == step == stopped["place"][1]
    ended, read = fit(tmp_path / "resumed", kill=None, ckpt_path=path, **options)
    assert differing(ended, unbroken) == []
    assert begun[: len(order) - len(read)] + read == order, "no batch is read twice or missed"
