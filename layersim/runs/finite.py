"""Where numbers stop being finite: looked for once it is known that some do, and named by layer, batch and sample."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from layersim.backbones.tokens import POSITIONS
from layersim.errors import UserError
from layersim.heads import Head
from layersim.outputs import LayerFeatures

if TYPE_CHECKING:
    from layersim.module import LayerwiseModule

Batch = Mapping[str, Any]


def is_searching(trainer: Trainer) -> bool:
    """Whether LearningRateFinder is trying rates; it has the trainer's callbacks put away meanwhile."""
    return any(type(call).__module__.startswith("lightning.pytorch.tuner") for call in trainer.callbacks)  # type: ignore[attr-defined]


def broken(values: Tensor) -> Tensor:
    """(K, N) which vectors of (K, N, D) features hold NaN or infinity."""
    return ~values.sum(dim=-1, dtype=torch.float32).isfinite()


def first_broken(batch: Batch, features: LayerFeatures, layers: list[int], head: Head) -> str:
    """What is first not finite on the way from a batch to its loss, with its layer (from 1) and its sample; empty where
    all is finite, up to each layer's loss. Features are (K, N, D) of these K layers; a sharded model's head is whole
    from its forward to its backward."""
    for key, value in batch.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
            rows = ~value.flatten(1).isfinite().all(dim=1) if value.ndim > 1 else ~value.isfinite()
            if rows.any():
                return f"its {key}, of {_sample(rows, batch, None)}"
    for layer, values, rows in zip(layers, features.values.detach(), broken(features.values), strict=True):
        if rows.any():
            return f"features of layer {layer + 1}, of {_sample(rows, batch, features.position)}"
        if features.targets is None:
            continue
        if not head.losses(values[None], features.targets, [layer]).isfinite().all():
            losses = [head.losses(values[None, [n]], features.targets[[n]], [layer]) for n in range(len(rows))]
            rows = ~torch.cat(losses).isfinite()
            return f"the loss at layer {layer + 1}, of {_sample(rows, batch, features.position)}"
    return ""


def _sample(rows: Tensor, batch: Batch, position: Tensor | None) -> str:
    """The sample, by its index in its source, that the first true one of (N,) rows is of; a language model's rows are
    tokens."""
    row, index = int(rows.long().argmax()), batch.get("index")
    if index is not None and len(index) == len(rows):
        return f"sample {int(index[row])}"
    if index is not None and position is not None and "position" in batch:
        own = (batch["position"] == position[row] // POSITIONS).nonzero()
        return f"sample {int(index[own[0]])}, token {int(position[row] % POSITIONS)}"
    return f"row {row} of the batch"


class Finiteness:
    """Watches the loss, gradients, 16-bit overflows and what evaluation measures, at next to no cost while all is
    finite."""

    def __init__(self) -> None:
        self.overflows = 0
        """Steps that were skipped, as their gradients overflowed in 16 bits."""
        self._scale = 0.0
        self._batch: Batch = {}
        self._loss_of: Callable[[Any], Any] | None = None
        self._awaited: tuple[int, Tensor, Batch, Tensor | None] | None = None
        self._first, self._samples = "", 0

    def begin(self, batch: Batch, batch_idx: int, layers: list[int], loss_of: Callable[[Any], Any]) -> None:
        """What is trained on: the batch, its number, the layers that are read, and features and loss of its samples."""
        self._batch, self._number, self._layers, self._loss_of = batch, batch_idx, layers, loss_of

    def check_loss(self, module: "LayerwiseModule", total: Tensor, loss: Tensor, features: LayerFeatures) -> None:
        """Stops the training by a UserError where the `total` loss, of all processes, is not finite, for what `loss`,
        of this one, tells."""
        if torch.isfinite(total) or is_searching(module.trainer):
            return
        where = "in another process"
        if not torch.isfinite(loss):
            where = first_broken(self._batch, features, self._layers, module.head)
        self._stop(module, f"The loss is {total.item()}", where or type(module.objective).__name__)

    def check_gradients(self, module: "LayerwiseModule") -> None:
        """Stops the training by a UserError where a gradient is not finite. Looked at where every process has all of
        them, and nobody scales them: what overflows in 16 bits is skipped."""
        if (scaler := scaler_of(module)) is not None:
            self._scale = scaler.get_scale()
            return
        named = {name: each.grad for name, each in module.named_parameters() if each.grad is not None}
        whole = isinstance(module.trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        if not whole or not named or is_searching(module.trainer):
            return
        if torch.stack(torch._foreach_norm([*named.values()])).isfinite().all():  # 0.2 % of a ViT-S's step on a host
            return
        name = next((name for name, gradient in named.items() if not gradient.isfinite().all()), None)
        if name is None:  # large ones, whose squares alone overflow
            return
        parameter = module.get_parameter(name)
        own: list[bool] = []
        with suppress(UserError):  # of a backbone that has a forward in place of blocks
            own = [any(each is parameter for each in block.parameters()) for block in module.backbone.blocks]
        layer = f" (layer {own.index(True) + 1})" if any(own) else ""
        where = f"the gradient of {name}{layer}, of {self._culprit(module)}"
        self._stop(module, "The loss is finite, but not its gradient,", where)

    def _culprit(self, module: "LayerwiseModule") -> str:
        """The first sample that by itself makes a gradient which is not finite."""
        loss_of = self._loss_of
        assert loss_of is not None
        parameters = [each for each in module.parameters() if each.requires_grad]
        tensors = {key: each for key, each in self._batch.items() if isinstance(each, Tensor) and each.ndim}

        def breaks(row: int) -> bool:
            some = {**self._batch, **{key: each[row : row + 1] for key, each in tensors.items()}}
            with torch.enable_grad(), module.trainer.precision_plugin.train_step_context():
                loss = loss_of(some)[1]
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            return not all(each.isfinite().all() for each in gradients if each is not None)

        rows = torch.arange(len(next(iter(tensors.values()))))
        first = next(filter(breaks, range(len(rows))), None)
        return "no sample of this process alone" if first is None else _sample(rows == first, self._batch, None)

    def _stop(self, module: "LayerwiseModule", what: str, where: str) -> None:
        checkpoint = module.trainer.checkpoint_callback
        last = getattr(checkpoint, "last_model_path", "") or getattr(checkpoint, "best_model_path", "")
        raise UserError(
            f"{what} in epoch {module.current_epoch}, step {module.global_step}; training stops before the weights "
            f"take it up. First not finite: {where} (batch {self._number}). Look at the sample, lower the learning "
            "rate, or clip gradients (--trainer.gradient_clip_val). "
            + (f"The last good checkpoint is {Path(last)}." if last else "No checkpoint had been written yet.")
        )

    def end(self, module: "LayerwiseModule") -> None:
        """To be called after each batch: lets it go, and counts the step as skipped where the scale went down."""
        self._batch, self._loss_of = {}, None
        if (scaler := scaler_of(module)) is not None:
            self.overflows += scaler.get_scale() < self._scale

    def log_overflows(self, module: "LayerwiseModule") -> None:
        """Logs `train/overflows`, the steps of the run that were skipped, where gradients are scaled."""
        if scaler_of(module) is not None:
            module.log("train/overflows", float(self.overflows), sync_dist=True)

    def watch(self, batch_idx: int, batch: Batch, features: LayerFeatures) -> None:
        """To be called for each batch of an evaluation. It is looked at a batch later: no accelerator has to wait."""
        rows = broken(features.values)
        if batch_idx == 0:  # an evaluation before this one may have broken off
            self._awaited, self._first, self._samples = None, "", 0
        self._look()
        known = {key: batch[key] for key in ("index", "position") if key in batch}
        self._awaited = batch_idx, rows, known, features.position

    def tell_broken(self) -> None:
        """Warns, at an evaluation's end, of samples whose features are not finite."""
        self._look()
        if self._samples:
            warnings.warn(
                f"features are not finite first at {self._first}; {self._samples} in all are so in this process. What "
                "is measured of their layers is NaN.",
                UserWarning,
                stacklevel=2,
            )
        self._awaited, self._first, self._samples = None, "", 0

    def _look(self) -> None:
        if self._awaited is None or not bool((rows := self._awaited[1]).any()):
            return
        batch_idx, _, batch, position = self._awaited
        if not self._samples:
            layer = int(rows.any(dim=1).long().argmax())
            self._first = f"layer {layer + 1}, {_sample(rows[layer], batch, position)} (batch {batch_idx})"
        self._samples += int(rows.any(dim=0).sum())


def scaler_of(module: "LayerwiseModule") -> Any:
    """What scales the gradients of 16-bit training; None where nothing does."""
    return getattr(module.trainer.precision_plugin, "scaler", None)
