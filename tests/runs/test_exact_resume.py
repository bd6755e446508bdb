"""A training that is killed and resumed ends with the very numbers of one that was not: with dropout, on any number of
loader workers, from a checkpoint anywhere in an epoch."""

import random
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint

from callbacks import LayerAccuracyMonitor, RunRecorder
from layersim import LayerwiseModule
from layersim.backbones import TimmBackbone
from layersim.errors import UserError
from layersim.optimization.schedules import ReduceLROnPlateau
from layersim.runs.place import put_back, random_states
from layersim.runs.signals import Stopped
from tests import tiny

BATCHES = 11
"""Of an epoch; the last is ragged."""


class Killed(Exception): ...


class Watch(Callback):
    """Notes what each training batch reads, and kills the training at one of them."""

    def __init__(self, kill: int | None) -> None:
        self.kill = kill
        self.read: list[tuple[int, ...]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx == self.kill:
            raise Killed
        self.read.append(tuple(batch["index"].tolist()))


def fit(path: Path, **options: Any) -> tuple[dict[str, Any], list[tuple[int, ...]]]:
    """A training of three epochs of 11 batches: what it ends with, and the samples of its batches.

    Args:
        path: of the run; its checkpoints are saved each epoch, or every so many steps.
        **options: `kill`, the batch before which it is killed; `ckpt_path`; `every` so many steps; `workers`; `size` of
            a batch; the module's `lr_scheduler`; `callbacks` beside its own, which may raise `Stopped`; the trainer's.
    """
    seed_everything(3, verbose=False)
    dropout = {"proj_drop_rate": 0.2, "drop_path_rate": 0.1}
    backbone = TimmBackbone(
        "vit_tiny_patch16_224", num_classes=10, img_size=8, in_chans=1, model_args=tiny.ARCHITECTURE | dropout
    )
    schedule = options.pop("lr_scheduler", None)
    module = LayerwiseModule(backbone, optimizer=partial(torch.optim.AdamW, lr=1e-3), lr_scheduler=schedule)
    when = {"every_n_train_steps": every, "save_top_k": -1} if (every := options.pop("every", None)) else {}
    callbacks = [
        watch := Watch(options.pop("kill", None)),
        LayerAccuracyMonitor(),
        recorder := RunRecorder(),
        ModelCheckpoint(path / "checkpoints", filename="{step:03d}", **when),
        *options.pop("callbacks", []),
    ]
    data = tiny.digits(batch_size=options.pop("size", 50), num_workers=options.pop("workers", 0), max_train_samples=530)
    ckpt_path = options.pop("ckpt_path", None)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    options = {"max_epochs": 3, "limit_val_batches": 1, **quiet, **options}
    trainer = Trainer(default_root_dir=path, callbacks=callbacks, **options)
    with suppress(Killed, Stopped):
        trainer.fit(module, data, ckpt_path=ckpt_path)
    ended = {name: value.clone() for name, value in module.state_dict().items()}
    ended["records"] = [record.to_line() for record in recorder.records]
    ended["train/loss"] = trainer.callback_metrics.get("train/loss")
    ended["place"] = (trainer.current_epoch, trainer.global_step)
    return ended, watch.read


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    assert one.keys() == other.keys()
    equal = {
        name: value.equal(other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    }
    return [name for name in equal if not equal[name]]


def resumed(path: Path, **options: Any) -> tuple[dict[str, Any], list[tuple[int, ...]], int]:
    """What a training ends with that was killed and resumed; what it read since; the step that it was resumed from."""
    fit(path / "killed", **options)
    newest = max((path / "killed" / "checkpoints").iterdir())
    del options["kill"]
    ended, read = fit(path / "resumed", ckpt_path=newest, **options)
    return ended, read, int(newest.stem.removeprefix("step="))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_within_an_epoch_other_batches_are_refused(tmp_path: Path) -> None:
    fit(tmp_path / "killed", kill=5, every=3)
    (within,) = (tmp_path / "killed/checkpoints").iterdir()
    with pytest.raises(UserError, match=r"dealt out by batch size of all processes 50, and now by .* 25: some would"):
        fit(tmp_path / "other", ckpt_path=within, size=25, every=3)


class Broken(Exception): ...


class BreakOff(Callback):
    """Ends a training before a batch, with which Lightning counts already, and saves it."""

    def __init__(self, batch: int, path: Path) -> None:
        self.batch, self.path = batch, path

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise Broken


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Be aware that when using `ckpt_path`, callbacks")
@pytest.mark.parametrize(("together", "batch"), [(2, 14), (2, 15), (3, 15), (3, 16)])
def test_gradients_that_wait_are_kept_when_a_training_breaks_off(together: int, batch: int, tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": together}
    unbroken, _ = fit(tmp_path / "unbroken", **options)
    with pytest.raises(Broken):
        fit(tmp_path / "first", callbacks=[BreakOff(batch, tmp_path / "broken.ckpt")], **options)
    ended, _ = fit(tmp_path / "second", ckpt_path=tmp_path / "broken.ckpt", **options)
    assert differing(ended, unbroken) == []


PLATEAU = partial(ReduceLROnPlateau, monitor="val/accuracy", mode="min", patience=0)
CASES: dict[str, dict[str, Any]] = {
    "of an epoch's end": {"kill": 15},
    "of an epoch's end, one worker": {"kill": 15, "workers": 1},
    "of an epoch's end, two workers": {"kill": 15, "workers": 2},
    "of an epoch's end, max_steps": {"kill": 15, "max_steps": 27},
    "of an epoch's end, a plateau": {"kill": 25, "lr_scheduler": PLATEAU},
    "within an epoch": {"kill": 16, "every": 3},
    "within an epoch, one worker": {"kill": 16, "every": 3, "workers": 1},
    "within an epoch, two workers": {"kill": 16, "every": 3, "workers": 2},
    "within an epoch, accumulated": {"kill": 19, "every": 3, "accumulate_grad_batches": 2},
    "within an epoch, max_steps": {"kill": 16, "every": 3, "max_steps": 27},
    "within an epoch, a plateau": {"kill": 25, "every": 3, "lr_scheduler": PLATEAU},
    "within an epoch of 7 batches": {"kill": 13, "every": 3, "limit_train_batches": 7},
    "of a validation within an epoch": {"kill": 17, "val_check_interval": 0.5},
    "before a validation within an epoch": {"kill": 7, "every": 5, "val_check_interval": 0.5},
    "of an epoch's last batch": {"kill": 13, "every": BATCHES},
    "of an epoch's last batch, a plateau": {"kill": 25, "every": BATCHES, "lr_scheduler": PLATEAU},
    "of the last of 7 batches": {"kill": 10, "every": 7, "limit_train_batches": 7, "limit_val_batches": 0},
    "of a last batch, accumulated": {"kill": 25, "every": 2, "accumulate_grad_batches": 3},
    "within an epoch, accumulated by epoch": {
        **{"kill": 20, "every": 3, "begun": 4},  # since the first epoch's steps take one
        "callbacks": [GradientAccumulationScheduler({0: 1, 1: 2})],
    },
    "within a group": {"kill": 6, "val_check_interval": 0.5, "accumulate_grad_batches": 2, "begun": 1},
    "within a later group": {"kill": 20, "val_check_interval": 4, "accumulate_grad_batches": 3, "begun": 2},
}
"""`begun` is how many batches of the next step's were read."""
_unbroken: dict[str, Any] = {}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a resumed run has a directory of its own
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_training_ends_as_an_unbroken_one(case: str, tmp_path: Path) -> None:
    options = dict(CASES[case])
    begun = options.pop("begun", 0)
    same = str({key: value for key, value in options.items() if key not in ("kill", "every", "workers")})
    if same not in _unbroken:
        _unbroken[same] = fit(tmp_path / "unbroken", **{**options, "kill": None, "every": None, "workers": 0})
    unbroken, order = _unbroken[same]
    ended, read, step = resumed(tmp_path, **options)
    assert differing(ended, unbroken) == []
    assert read == order[len(order) - len(read) :]
    per_epoch = options.get("limit_train_batches", BATCHES)
    of_epoch = -(-per_epoch // (together := options.get("accumulate_grad_batches", 1)))
    epochs, steps = divmod(step, of_epoch)
    before = epochs * per_epoch + steps * together + begun
    assert len(read) == len(order) - before, "no batch is read twice or missed"


class Validations(Callback):
    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.epochs.append(trainer.current_epoch)


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Be aware that when using `ckpt_path`, callbacks")
def test_a_training_that_is_killed_before_a_validation_and_then_behind_it(tmp_path: Path) -> None:
    """Lightning counts a batch too many where a validation is begun again, so that it never looks done."""
    unbroken, order = fit(tmp_path / "unbroken")
    fit(tmp_path / "first", kill=13, every=BATCHES)
    (before,) = (tmp_path / "first" / "checkpoints").iterdir()
    fit(tmp_path / "second", kill=13, ckpt_path=before)
    (behind,) = (tmp_path / "second" / "checkpoints").iterdir()
    ended, read = fit(tmp_path / "third", ckpt_path=behind, callbacks=[watch := Validations()])
    assert differing(ended, unbroken) == []
    assert read == order[BATCHES:]
    assert watch.epochs == [1, 2]
    counts = torch.load(behind, weights_only=True)["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
    assert len({*counts.values()}) == 1, "what `metrics.csv` takes for a validation that is done"


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_training_that_is_killed_within_its_first_group(tmp_path: Path) -> None:
    """Lightning saves again at the step that it goes on from, when the gradient of a further batch is there."""
    options = {"every": 3, "accumulate_grad_batches": 2}
    unbroken, order = fit(tmp_path / "unbroken", **options)
    place: Path | None = None
    for number, kill in enumerate((7, 7, None)):
        ended, read = fit(tmp_path / str(number), kill=kill, ckpt_path=place, **options)
        place = min((tmp_path / str(number) / "checkpoints").iterdir())
    assert differing(ended, unbroken) == []
    assert read == order[7:]


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:You requested to overfit")
def test_what_reads_an_epoch_from_its_first_batch_goes_on_from_an_epochs_end_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"With --trainer\.overfit_batches Lightning reads an epoch from its"):
        resumed(tmp_path, kill=7, every=3, overfit_batches=5)
    *_, step = resumed(tmp_path / "end", kill=7, overfit_batches=5)
    assert step == 5


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_without_the_random_states_another_training_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: it is dropout that differs, not the samples."""
    unbroken, order = fit(tmp_path / "unbroken")
    monkeypatch.setattr("layersim.runs.place.put_back", lambda state: None)
    ended, read, _ = resumed(tmp_path, kill=16, every=3)
    assert len(differing(ended, unbroken)) > len(unbroken) / 2
    assert read == order[15:]


def test_generators_go_on_where_they_stood() -> None:
    def draw() -> list[float]:
        numpy = [np.random.rand(), np.random.randn()]  # noqa: NPY002
        return [random.random(), random.gauss(0, 1), *numpy, torch.rand(1).item()]

    draw()  # leaves the second half of a pair of normal numbers behind
    (state,) = random_states()
    drawn = draw()
    assert draw() != drawn, "the control"
    put_back(state)
    assert draw() == drawn
