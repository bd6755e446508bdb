"""Where in its epoch a training stands, beyond weights, optimizer and schedule: a resumed one goes on bit by bit."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import DataLoader, IterableDataset

from layersim.errors import UserError
from layersim.evaluation import everywhere

PLACE = "place"
"""A checkpoint's entry: what `Place` keeps."""


class Place:
    """What a checkpoint carries of a training's place: the random states of every process, and its gradients where
    batches are accumulated to a step that is not done; the sum of the losses of the epoch's samples so far, the last
    value of each metric that a `ReduceLROnPlateau` follows; how many rows `metrics.csv` has, and what the step that the
    checkpoint is of has yet to log."""

    def __init__(self) -> None:
        self._loss = torch.zeros(2, dtype=torch.float64)
        self._random_states: list[dict[str, Any]] = []
        self._gradients: list[dict[str, Tensor]] = []
        self._followed: dict[str, float] = {}
        self._dealt: dict[str, int] | None = None

    def save(self, checkpoint: dict[str, Any], trainer: Trainer) -> None:
        """Writes the place into a checkpoint that is being saved."""
        measured = trainer.callback_metrics
        followed = [config.monitor for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
        checkpoint[PLACE] = {
            "random_states": random_states(),
            "gradients": accumulated(trainer),
            "loss": self._loss,
            "followed": {name: float(measured[name]) for name in followed if name in measured},
            "unlogged": unlogged(trainer),
            "rows": sum(getattr(logger, "rows", 0) for logger in trainer.loggers),
            "dealt": dealt(trainer),
        }
        loop = trainer.fit_loop
        if "loops" in checkpoint and (fetcher := loop._data_fetcher) is not None:
            await_validation(checkpoint, due=loop.epoch_loop._should_check_val_fx(fetcher))

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Reads a checkpoint's place, where it tells one."""
        if place := checkpoint.get(PLACE):
            self._random_states, self._gradients = place["random_states"], place["gradients"]
            self._loss, self._followed, self._dealt = place["loss"], place["followed"], place.get("dealt")

    def take_up(self, module: LightningModule) -> None:
        """Puts back what was loaded, when nothing but training's first batch or epoch follows."""
        trainer, loop = module.trainer, module.trainer.fit_loop
        if loop.restarted_mid_epoch and trainer.overfit_batches:  # type: ignore[attr-defined]
            raise UserError(
                "With --trainer.overfit_batches Lightning reads an epoch from its first batch on, and the checkpoint is"
                " of a place within one. Resume from one of an epoch's end, or train anew."
            )
        if loop.restarted_mid_epoch and self._dealt not in (None, now := dealt(trainer)):
            raise UserError(
                f"The checkpoint is of before its epoch's end. Data were dealt out by {_told(self._dealt)}, and now by "
                f"{_told(now)}: some would be read twice, others never. Resume as it was, or from an epoch's end."
            )
        self._put_back_own(module)
        for scheduler in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(scheduler, GradientAccumulationScheduler):  # whose turn Lightning passes over within an epoch
                scheduler.on_train_epoch_start(trainer)
        if loop.restarted_on_epoch_end:  # under max_steps, Lightning would end the checkpoint's epoch a second time
            loop.epoch_progress.increment_completed()
            self._step_plateaus(module)
            for restarted in (loop, loop.epoch_loop, loop.epoch_loop.val_loop):
                restarted.on_iteration_done()
        elif loop.resumed_on_epoch_end:
            self._step_plateaus(module)

    def _put_back_own(self, module: LightningModule) -> None:
        """Puts back what the checkpoint keeps of this process among as many; else gradients alone, their mean."""
        rank, processes, stored = module.global_rank, module.trainer.world_size, len(self._random_states)
        if stored == processes:
            put_back(self._random_states[rank])
        elif stored:
            rank_zero_info(
                f"The checkpoint is of {stored} process(es), but {processes} go on: what is random in the model"
                " (dropout) is drawn anew."
            )
        everyones = self._gradients
        put_back_gradients(module, everyones[rank : rank + 1] if len(everyones) == processes else everyones)
        self._random_states, self._gradients = [], []

    def _step_plateaus(self, module: LightningModule) -> None:
        """Schedules that follow a metric move after an epoch's checkpoint is saved."""
        for config in module.trainer.lr_scheduler_configs:
            due = config.interval == "epoch" and module.current_epoch % config.frequency == 0
            if config.reduce_on_plateau and due and config.monitor in self._followed:
                module.lr_scheduler_step(config.scheduler, self._followed[config.monitor])

    def begin_epoch(self) -> None:
        self._loss = torch.zeros_like(self._loss)

    def add(self, loss: Tensor) -> None:
        """Adds (2,) the sum of a batch's losses and its samples, of all processes."""
        self._loss = self._loss.to(loss.device) + loss

    def end_epoch(self, module: LightningModule) -> None:
        """Logs the loss over all samples of the epoch, those before an interruption too."""
        total, count = self._loss
        module.log("train/loss", total / count, sync_dist=True)  # the same on all; Lightning warns where none is asked
        for name, value in self._followed.items():
            if name not in module.trainer.callback_metrics:
                module.log(name, value, logger=False, sync_dist=True)
        module.trainer.fit_loop.on_iteration_done()  # else Lightning has no plateau schedule step in a resumed epoch


def dealt(trainer: Trainer) -> dict[str, int]:
    """What decides which samples a training has read when it has read so many batches; of a loader of one's own, that
    does not tell its batch size, nothing."""
    loader, processes = trainer.train_dataloader, trainer.world_size
    if not isinstance(loader, DataLoader) or not (size := loader.batch_size):
        return {}
    if isinstance(loader.dataset, IterableDataset):
        return {"batch size": size, "processes": processes, "loader workers": loader.num_workers}
    return {"batch size of all processes": size * processes}


def _told(dealt: dict[str, int] | None) -> str:
    return ", ".join(f"{what} {number}" for what, number in (dealt or {}).items()) or "a loader of one's own"


def await_validation(checkpoint: dict[str, Any], *, due: bool) -> None:
    """Rewrites, in place, the place in its epoch of a checkpoint that is being saved.

    Lightning takes a checkpoint of a batch's end for one of after the validation that follows, and does not end an
    epoch whose last batch it is of. So that a resumed training does both, where a validation is `due` it is marked as
    one of within that, before its first batch.
    """
    loops = checkpoint["loops"]["fit_loop"]
    batches, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
    at_end = batches["total"]["completed"] + 1 == batches["total"]["processed"] == batches["total"]["ready"]
    if at_end and (due or batches["is_last_batch"]):
        for count in (batches["total"], batches["current"]):
            count["completed"] += 1
        if not due:
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    done = validation["current"]
    if (at_end and due) or done["ready"] > done["completed"]:
        validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        validation["current"] = dict.fromkeys(validation["total"], 0)
    else:  # Lightning goes on counting with the batch that such a mark stands for, so that no validation looks done
        validation["total"] = dict.fromkeys(validation["total"], validation["total"]["completed"])


def unlogged(trainer: Trainer) -> dict[str, float]:
    """What Lightning logs of a step once the callbacks, one of which may be saving a checkpoint, are done with it."""
    loop, connector = trainer.fit_loop, trainer._logger_connector
    batches: Any = loop.epoch_loop.batch_progress.current
    if batches.processed <= batches.completed or loop._should_accumulate() or not connector.should_update_logs:
        return {}
    return {name: float(value) for name, value in connector.metrics["log"].items() if not isinstance(value, dict)}


def accumulated(trainer: Trainer) -> list[dict[str, Tensor]]:
    """The gradients that wait for further batches: of every process by rank, or, of a sharded model, which sums them
    over the processes at once, a single one for all; nothing where none wait."""
    loop = trainer.fit_loop.epoch_loop
    batches: Any = loop.batch_progress.current
    broken_off = batches.ready > batches.processed  # within a batch, with which Lightning counts already
    if not (batches.processed % trainer.accumulate_grad_batches if broken_off else loop._should_accumulate()):
        return []
    named = trainer.lightning_module.named_parameters()
    grown = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
    own = {name: (grad.full_tensor() if isinstance(grad, DTensor) else grad).cpu() for name, grad in grown.items()}
    sharded = any(isinstance(grad, DTensor) for grad in grown.values())
    return [own] if sharded else everywhere([own])


def put_back_gradients(module: LightningModule, stored: list[dict[str, Tensor]]) -> None:
    """Gives each parameter the mean of its gradients in `stored`."""
    for name, parameter in module.named_parameters():
        if found := [each[name] for each in stored if name in each]:
            mean = (torch.stack(found).sum(dim=0) / len(stored)).to(parameter.device)
            if isinstance(parameter, DTensor):
                mean = distribute_tensor(mean, parameter.device_mesh, parameter.placements)
            parameter.grad = mean


def random_states() -> list[dict[str, Any]]:
    """Where the generators of torch, of the process's GPU, of NumPy and of Python stand, of every process by rank.

    As tensors and numbers, which a checkpoint is read with (`weights_only`).
    """
    _, words, gauss = random.getstate()
    _, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (the generator that others draw from)
    own = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "python": (torch.tensor(words), gauss),
    }
    return everywhere([own])


def put_back(state: dict[str, Any]) -> None:
    """Sets this process's random generators to where one of `random_states` tells."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    words, gauss = state["python"]
    random.setstate((3, tuple(words.tolist()), gauss))
