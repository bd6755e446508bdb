"""The LightningModule: one step for training, validation, test and prediction."""

import os
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from layersim.backbones.base import Backbone, check_mapping
from layersim.errors import UserError, as_user_error, check_choice
from layersim.evaluation import reduced
from layersim.freezing import freeze_parts
from layersim.heads import Head, SharedHead, TunedLens, with_classes
from layersim.objectives import Aligned, KLToLast, Objective, Reading, Step
from layersim.optimization import schedules
from layersim.optimization.parameter_groups import ParameterGroups, checked_groups
from layersim.optimization.schedules import Interval, WarmupDecay, start_from
from layersim.outputs import LayerFeatures, LayerOutput
from layersim.precision import refuse_mps
from layersim.runs.finite import Finiteness
from layersim.runs.length import steps_of, steps_per_epoch
from layersim.runs.place import Place
from layersim.runs.resume import RATES, STEPS_PER_EPOCH, check_length, prefer_given_options, starting_rates
from layersim.sharding import refuse_other_sharding, run_with_the_others, shard


class LayerwiseModule(LightningModule):
    """A backbone, a head that reads its layers, and an objective that says which readings count.

    Logs `train/loss`; what is measured on validation and test data is the callbacks' work, from the `LayerOutput` that
    `validation_step` and `test_step` return.

    Args:
        backbone: yields the layers' features.
        objective: what is minimised; where None `KLToLast` for a `TunedLens`, else the aligned loss, weights linear.
        head: how features are read: `SharedHead` (the model's own head for all layers), `SeparateHeads`; of a frozen
            model `TunedLens` or `LinearProbes`.
        freeze: parts that stay as they are, in evaluation mode and without a gradient: `backbone`, with its final norm
            and classifier, or `head`; in a list or separated by commas.
        optimizer: made from the parameters.
        parameter_groups: in what the optimizer's options differ between parameters; by default in nothing.
        lr_scheduler: made from the optimizer. torch's `ReduceLROnPlateau` follows `val/loss`; `ReduceLROnPlateau` of
            `layersim.optimization.schedules` takes another `monitor`.
        lr_scheduler_interval: whether the schedule moves every optimizer `step` or every `epoch`. Where None: by steps
            if it counts them (`WarmupDecay`, `OneCycleLR` and others of `total_steps`, `CyclicLR`), else by epochs; a
            line tells.
        activation_checkpointing: blocks, from 1, that run again in the backward, to save memory; True: all.
        compile: compile the backbone with `torch.compile`.

    Raises:
        UserError: an objective that does not fit the backbone's number of layers.
    """

    def __init__(
        self,
        backbone: Backbone,
        objective: Objective | None = None,
        head: Callable[[Backbone], Head] = SharedHead,
        freeze: str | list[str] | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        parameter_groups: ParameterGroups = ParameterGroups(),  # noqa: B008  # which is frozen
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Interval | None = None,
        activation_checkpointing: bool | list[int] = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        self.head = head(backbone)
        self.frozen = freeze_parts(self, freeze)
        self.objective = objective or (KLToLast() if isinstance(self.head, TunedLens) else Aligned())
        self.objective.build(backbone.num_layers)
        self.objective.checked_layers(backbone.num_layers, None)
        self.optimizer = optimizer
        self.parameter_groups = parameter_groups
        self.lr_scheduler = lr_scheduler
        check_choice("lr_scheduler_interval", lr_scheduler_interval, Interval | None)
        self.lr_scheduler_interval = lr_scheduler_interval
        self._found_rate: float | None = None
        self._rates: list[float] = []
        self._seed = 0
        self._place = Place()
        self._finite = Finiteness()
        backbone.recompute(activation_checkpointing)
        if compile:
            self.backbone.compile()

    @property
    def num_layers(self) -> int:
        """L, the number of layers."""
        return self.backbone.num_layers

    @property
    def learning_rate(self) -> float:
        """The optimizer's, before any schedule; Lightning's LearningRateFinder sets it."""
        if self._found_rate is None:
            return float(self._optimizer_of([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"])
        return self._found_rate

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self._found_rate = rate

    @property
    def has_unused_parameters(self) -> bool:
        """Whether some training step leaves parameters without a gradient, so that DDP must look for them."""
        choices, top = self.objective.choices(self.num_layers), 0 if "backbone" in self.frozen else self.num_layers - 1
        return any(layers[-1] < top or self.head.unused_parameters(layers) for layers in choices)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.frozen:
            getattr(self, part).eval()
        return self

    def setup(self, stage: str) -> None:
        strategy = self.trainer.strategy  # whatever it was named by; what the user told it to do stays
        refuse_mps(strategy.root_device)
        refuse_other_sharding(strategy)
        if stage == "fit" and isinstance(strategy, DDPStrategy) and self.has_unused_parameters:
            strategy._ddp_kwargs.setdefault("find_unused_parameters", True)

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # of a ModelParallelStrategy
            shard(self, self.device_mesh)

    def forward(self, batch: dict[str, Any]) -> LayerOutput:
        """All that the model knows of a batch at every layer, with the objective's value where there are targets."""
        features = with_classes(self.backbone(batch), self.backbone.num_classes)
        readout = self.head(features.values, features.targets, range(self.num_layers))
        if features.targets is None:
            return LayerOutput(features, readout)
        layers, values, losses = self.objective.checked_layers(self.num_layers, None), features.values, readout.losses
        if len(layers) < self.num_layers:
            values, losses = values[layers], losses[layers]
        read = Reading(self.head, values, features.targets, layers, self.num_layers, known_losses=losses)
        return LayerOutput(features, readout, self.objective.checked(self.objective(read), trains=False))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        length = self._total_steps() if self.objective.follows_length else None
        step = Step(self.global_step, self.trainer.fit_loop.epoch_loop.total_batch_idx, length, self._seed)
        layers = self.objective.checked_layers(self.num_layers, step)
        loss_of = partial(self.loss_of, layers=layers, step=step)
        self._finite.begin(batch, batch_idx, layers, loss_of)
        features, loss = loss_of(batch)
        return self._of_all_samples(self.objective.checked(loss, trains=True), features)

    def loss_of(self, batch: dict[str, Any], layers: list[int], step: Step) -> tuple[LayerFeatures, Tensor]:
        """The features of `layers`, and the objective's loss, (), at this step of a training."""
        with torch.set_grad_enabled("backbone" not in self.frozen and torch.is_grad_enabled()):
            features = with_classes(self.backbone(batch, layers), self.backbone.num_classes)
        if features.targets is None:
            hint = " The batch has labels: name them label." if "labels" in batch else ""
            raise UserError(f"Training needs a label for every sample, but the data gives none.{hint}")
        read = Reading(self.head, features.values, features.targets, layers, self.num_layers, step)
        return features, self.objective(read)

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> LayerOutput:  # type: ignore[override]
        if dataloader_idx:
            raise UserError("Expected one loader, but got several: call trainer.validate or test with each.")
        output: LayerOutput = self(batch)  # Lightning hands whatever a step returns to the callbacks
        self._finite.watch(batch_idx, batch, output.features)
        return output

    test_step = validation_step  # type: ignore[assignment]

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> LayerOutput:
        """Without the labels: nothing is learnt or measured, and some or all may be hidden (−1)."""
        check_mapping(batch)
        return self.validation_step({key: value for key, value in batch.items() if key != "label"}, batch_idx)

    def _of_all_samples(self, loss: Tensor, features: LayerFeatures) -> Tensor:
        """Logs the loss over the samples of all processes, and weighs this process's by its share of them.

        DDP averages gradients over processes. With unequal shares (a ragged last batch, tokens) that is the gradient of
        no mean over samples; with this factor it is one process's.
        """
        world, samples = self.trainer.world_size, features.values.shape[1]
        sums = torch.stack([loss.detach().double() * samples, loss.new_tensor(samples, dtype=torch.float64)])
        sums = reduced(sums, "sum")
        total, count = sums
        # of all processes: one that stops alone leaves the others waiting
        self._finite.check_loss(self, total / count, loss, features)
        self.log("train/loss_step", total / count, prog_bar=True, batch_size=samples)
        self._place.add(sums)
        return loss * (samples * world / count).to(loss.dtype) if world > 1 else loss

    def on_after_backward(self) -> None:
        self._finite.check_gradients(self)

    def on_train_batch_end(self, *_: Any) -> None:
        self._finite.end(self)

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        run_with_the_others(self, batch)  # after the callbacks, which may have to meet at this batch

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self) -> None:
        self._finite.tell_broken()

    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self.objective.follows_length:
            self._total_steps()  # told before anything is trained where it is not known
        optimizer, schedule = self._make_optimizer()
        self._rates = starting_rates(optimizer)
        if schedule is None:
            return optimizer
        interval = self.lr_scheduler_interval or schedules.interval_of(schedule)
        entry: LRSchedulerConfigType = {"scheduler": schedule, "interval": interval}
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            entry.update(schedules.plateau_entry(schedule, interval, self.trainer))  # type: ignore[typeddict-item]
            rank_zero_info(f"ReduceLROnPlateau follows {entry['monitor']}, of which the {schedule.mode} counts.")
        elif isinstance(schedule, WarmupDecay):
            if interval == "epoch":
                raise UserError("WarmupDecay counts optimizer steps. Leave --model.lr_scheduler_interval out.")
            schedule.spread_over(self._total_steps())
        else:
            steps, epochs = steps_of(self.trainer), self.trainer.max_epochs
            lengths = {"step": steps if steps >= 0 else inf, "epoch": inf if epochs in (None, -1) else epochs}
            schedules.check_lasts(schedule, lengths[interval])
            rank_zero_info(schedules.told(schedule, interval, lengths["step"], lengths["epoch"]))
        return {"optimizer": optimizer, "lr_scheduler": entry}

    def grouped_parameters(self) -> list[dict[str, Any]]:
        """What the optimizer is made from; for groups of one's own, to override."""
        return self.parameter_groups.of(self)

    def _make_optimizer(self) -> tuple[Optimizer, Any]:
        optimizer = self._optimizer_of(checked_groups(self.grouped_parameters(), self))
        return optimizer, self.lr_scheduler and schedules.scheduled(optimizer, self.lr_scheduler)

    def _optimizer_of(self, parameters: Any) -> Optimizer:
        with as_user_error("torch cannot make the optimizer", "Change --model.optimizer."):
            return self.optimizer(parameters)

    def check_optimizer(self) -> str | None:
        """Whether torch takes the options of optimizer and schedule; the metric that the schedule waits for, if any.

        Raises:
            UserError: it does not take them.
        """
        _, schedule = self._make_optimizer()
        if schedule is not None:
            schedules.try_out(schedule)
        return schedules.monitor_of(schedule)

    def _total_steps(self) -> int:
        """Optimizer steps of the whole training, of which a schedule is a share."""
        steps = steps_of(self.trainer)
        if not 0 <= steps < inf:
            raise UserError(
                "The objective or the learning rate changes over the training, whose length is not known here. Set "
                "--trainer.max_steps or, where the data has a length, --trainer.max_epochs."
            )
        return int(steps)

    def on_fit_start(self) -> None:
        # Validation shares may differ by a batch between processes. DDP's forward would broadcast buffers at each and
        # wait for ever; a transformer's buffers (position tables) are constants.
        if isinstance(model := self.trainer.strategy.model, DistributedDataParallel):
            model.broadcast_buffers = False

    def on_train_epoch_start(self) -> None:
        self._place.begin_epoch()

    def on_train_epoch_end(self) -> None:
        self._finite.log_overflows(self)
        self._place.end_epoch(self)

    def on_train_start(self) -> None:
        self._place.take_up(self)
        seed = os.environ.get("PL_GLOBAL_SEED", torch.initial_seed())  # building a model may set torch's own
        self._seed = self.trainer.strategy.broadcast(int(seed))
        if self._found_rate is not None:
            (optimizer,) = self.trainer.optimizers
            groups = checked_groups(self.grouped_parameters(), self)
            self._rates = [group.get("lr", self._found_rate) for group in groups]
            for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate
        for config in self.trainer.lr_scheduler_configs:
            if self._found_rate is not None:
                start_from(config.scheduler, self._rates)
            if isinstance(config.scheduler, WarmupDecay):  # a batch size that was found since changes the length
                config.scheduler.spread_over(self._total_steps())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is None or not self.trainer.training:
            return
        self._place.load(checkpoint)
        by_length = self.objective.follows_length
        # LightningCLI sets one of its own on the instance
        if getattr(self.configure_optimizers, "__func__", None) is LayerwiseModule.configure_optimizers:
            optimizer, schedule = self._make_optimizer()
            loaded = self.trainer.optimizers if isinstance(self, FSDPModule) else []
            prefer_given_options(checkpoint, optimizer, dict(self.hparams), loaded)
            by_length = by_length or isinstance(schedule, WarmupDecay)
        begun = bool(checkpoint["global_step"])  # else, as where a finder puts weights back, there is no place to lose
        if begun and by_length and self._total_steps() != self.trainer.max_steps:  # else the length is the user's own
            check_length(checkpoint, steps_per_epoch(self.trainer))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[RATES] = self._rates
        self._place.save(checkpoint, self.trainer)
        if self.trainer.num_training_batches < inf:
            checkpoint[STEPS_PER_EPOCH] = steps_per_epoch(self.trainer)
