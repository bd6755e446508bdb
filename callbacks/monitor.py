"""What all monitors share: measure over an evaluation epoch, log, draw, and publish what was measured."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torchmetrics import Metric

from callbacks.evaluation import EvaluationCallback, layerwise
from callbacks.figures import Figures
from callbacks.loggers import logged, make_directory, on_epoch_axis
from callbacks.tapped_module import TappedModule, named_parts
from layersim.errors import UserError, check_choice
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.precision import refuse_mps
from layersim.report.drawing.pictures import Picture
from layersim.report.figures import figures_of
from layersim.report.quantity import Quantity
from layersim.report.reading import short
from layersim.report.records import Stage
from layersim.runs.rehearsal import classifier_width, made_up
from layersim.similarity.kept_samples import KeepOn, KeptSamples, SampleKeeper
from layersim.similarity.layer_metric import join
from layersim.tapping.output_pooling import Pool

AnyMetric = TypeVar("AnyMetric", bound=Metric)


class LayerMonitor(EvaluationCallback, ABC, Generic[AnyMetric]):
    """Measures something of every layer over each validation and test epoch, on all processes together.

    It consumes the `LayerOutput` that the step returned, and starts anew each epoch. What it publishes is logged, drawn
    and recorded by axes, unit and range, whatever its name is.

    With `layers` it measures any LightningModule, whatever its steps return: it taps the named submodules while the
    step of a validation or test batch runs (`layersim.FeatureTap`).

    Args:
        layers: submodules of the LightningModule (`net.blocks.*`). Where None: the layers of a LayerwiseModule.
        pool: with `layers`, how a module's output becomes (N, D), as `FeatureTap` takes it.
        layout: which axis of their outputs is what, as `FeatureTap` takes it: "TND", "NHWD", …
        norm: the norm between the last layer and the classifier, (N, D) → (N, D); None: there is none.
        head: the classifier, (N, D) → (N, C), read behind the norm at every layer by monitors that read it.
        label: where in a batch the (N,) integer classes are: a key of a dictionary, or a place in a tuple. Where None:
            under "label", "labels" or "target", or second of two.
        keep_on: where a monitor that keeps samples has them: on the model's `device`; or on the `host`, which takes no
            memory of the device, and measures them there. The monitors of a trainer share one sample of a
            LayerwiseModule, as large as the largest `max_samples`, which is on the host if one of them says so.
    """

    on_bar: str | None = None
    """Which of the logged names the progress bar shows: it has room for one."""

    reads_head: bool = True
    """Whether it measures what the classifier says, and not features alone."""

    reads_labels: bool = False
    """Whether it compares that with labels, which every sample must then have."""

    def __init__(
        self,
        *,
        layers: str | list[str] | None = None,
        pool: Pool = "cls",
        layout: str | None = None,
        norm: str | None = None,
        head: str | None = None,
        label: str | int | None = None,
        keep_on: KeepOn = "device",
    ) -> None:
        self.named = named_parts(layers, pool=pool, layout=layout, norm=norm, head=head, label=label)
        """The parts of a module that is not ours; None: it measures a LayerwiseModule."""
        if layers is not None and head is None and self.reads_head:
            own = not type(self).__module__.startswith("callbacks.")
            alone = " A monitor of features alone says reads_head = False." if own else ""
            raise UserError(f"{type(self).__name__} reads the classifier at every layer. Name it: head=….{alone}")
        self.quantities: dict[str, Quantity] = {}
        """What the last epoch told, by name."""
        self.num_layers = 0
        """L of what is measured."""
        self.num_samples = 0
        """N of all processes, where the monitor has counted them."""
        self.unit = "samples"
        """What a sample of the model is: `samples` or `tokens`."""
        check_choice("keep_on", keep_on, KeepOn)
        self.keep_on: KeepOn = keep_on
        self._metrics: dict[str, AnyMetric] = {}
        self._sample: KeptSamples | None = None
        self._is_joined = False
        self._figures = Figures()
        self._tapped: TappedModule | None = None

    @abstractmethod
    def make_metrics(self, module: LayerwiseModule) -> dict[str, AnyMetric]:
        """Fresh metrics for one epoch of this model, by names of the monitor's own."""

    def update(self, metrics: dict[str, AnyMetric], output: LayerOutput) -> None:
        """Takes in one batch; by default all metrics do."""
        for metric in metrics.values():
            metric.update(output)

    @abstractmethod
    def measure(self, metrics: dict[str, AnyMetric]) -> dict[str, Quantity]:
        """What the epoch told, by name; called on every process, so that metrics may reduce across them."""

    def figures(self, quantities: Mapping[str, Quantity]) -> dict[str, Callable[[], Picture]]:
        """How to draw what the epoch told, by the figure's name; drawn by rank zero alone."""
        return figures_of(quantities, self.unit)

    def rehearse(self, module: LayerwiseModule, samples: int) -> set[str]:
        """The names of what is logged of an epoch of so many samples, found by measuring made-up ones.

        Raises:
            TooFewSamples: a measure that was asked for needs more.
        """
        if self.named is None:
            width = classifier_width(module)  # a measure may read features by the norm and the classifier
            return self.rehearsed(self.fresh(module), made_up(module.num_layers, width, samples))
        stand_in = cast(LayerwiseModule, TappedModule(module, self.named).model(2))
        names = self.rehearsed(self.fresh(stand_in), made_up(2, 8, samples))
        # a forward pass alone shows how many there are
        return {re.sub(r"layer_\d+$", "layer_*", name) for name in names}

    def rehearsed(self, metrics: dict[str, AnyMetric], output: LayerOutput) -> set[str]:
        """The names of what is logged of an epoch with this one step, which each process makes up for itself."""
        for metric in metrics.values():
            metric.distributed_available_fn = lambda: False
        self.update(metrics, output)
        return {name for name, _ in logged(self.measured(metrics, {}, len(output.features.values)))}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_mps(trainer.strategy.root_device)
        make_directory(trainer)

    def fresh(self, module: LayerwiseModule) -> dict[str, AnyMetric]:
        """The metrics of an epoch of this model."""
        self.unit = "tokens" if module.backbone.reads_tokens else "samples"
        self.num_layers = module.num_layers
        return self.make_metrics(module)

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_joined = False
        if self.named is None:
            first = next(monitor for monitor in _monitors(trainer) if monitor.named is None)
            self.begin(layerwise(pl_module), pl_module.device, first)
        else:
            self._tapped, self._metrics = TappedModule(pl_module, self.named), {}

    def begin(self, model: LayerwiseModule, device: torch.device, first: "LayerMonitor[Any]") -> None:
        """An epoch of this model, of which all metrics that keep samples share one: the one that the first monitor
        keeps."""
        self._metrics = {name: metric.to(device) for name, metric in self.fresh(model).items()}
        if first is self:
            self._sample = KeptSamples(max_samples=1).to(device)
        sample = first._sample
        for metric in self._metrics.values():
            if isinstance(metric, SampleKeeper) and metric.keeps_sample and sample is not None:
                metric.share(sample)
                sample.keep_on = "host" if "host" in (self.keep_on, sample.keep_on) else "device"

    def before(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._tapped is not None:
            self._tapped.open(None)

    def take(self, output: Any, batch: Any) -> None:
        if self._tapped is not None:
            output = self._tapped.read(batch)
            assert output is not None
            if not self._metrics:  # the first batch shows how many layers there are
                model = cast(LayerwiseModule, self._tapped.model(len(output.features.values)))
                self.begin(model, output.features.values.device, self)
        self.take_in(output)

    def take_in(self, output: LayerOutput) -> None:
        """What a step told, to the epoch's metrics."""
        if self._sample is not None and self._sample.is_shared:
            self._sample.update(output.features)
        self.update(self._metrics, output)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._tapped is not None:
            self._tapped.close()
            self._tapped = None
        self._figures.finish(trainer, in_haste=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._figures.finish(trainer)

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        if trainer.world_size > 1 and not self._is_joined:
            every = _monitors(trainer)
            join_all([each._metrics for each in every], [each._sample for each in every])
            for each in every:
                each._is_joined = True
        how: dict[str, Any] = {}
        if self._tapped is not None:
            self.num_layers, self.num_samples = self._tapped.shape()
            how = self._tapped.options()
            self._tapped = None
        self.quantities = quantities = self.measured(self._metrics, how, self.num_layers)
        self._metrics = {}  # features that a metric kept are let go
        prefix = "val" if stage == "validate" else stage
        numbers = dict(logged(quantities))
        own = self._unlogged(trainer, prefix, numbers)
        if trainer.is_global_zero:
            figures = self.figures(quantities)
            on_epoch_axis(trainer, [f"{prefix}/{name}" for name in (*own, *figures)])
            for name, draw in figures.items():
                self._figures.add(trainer, f"{prefix}/{name}", draw())
        values = torch.tensor([*numbers.values()], dtype=torch.float64, device=pl_module.device)
        if trainer.world_size > 1:  # all have the same numbers, up to rounding where the processes' machines differ
            dist.broadcast(values, 0)
        for name, value in zip(numbers, values, strict=True):
            if name not in own:
                continue
            # known to all: with `sync_dist` Lightning does not warn, and with `rank_zero_only` it reduces nothing
            on_bar = name == self.on_bar
            pl_module.log(f"{prefix}/{name}", value, prog_bar=on_bar, sync_dist=True, rank_zero_only=True)

    def _unlogged(self, trainer: Trainer, prefix: str, numbers: dict[str, float]) -> dict[str, float]:
        """Without those whose names are logged by now, which stay what the module, or another callback, says they are:
        Lightning would put both together."""
        there = {each.meta.name for _, each in trainer._results.valid_items()} if trainer._results else set()
        if taken := [name for name in numbers if f"{prefix}/{name}" in there]:
            rank_zero_warn(
                f"{', '.join(f'{prefix}/{name}' for name in taken)}: logged already by the module or another callback, "
                f"whose number it stays; {type(self).__name__} does not log its own."
            )
        return {name: number for name, number in numbers.items() if name not in taken}

    def measured(self, metrics: dict[str, AnyMetric], how: dict[str, Any], layers: int) -> dict[str, Quantity]:
        """What the epoch told of so many layers, checked, with these options beside each quantity's own."""
        found = self.measure(metrics)
        if not (isinstance(found, Mapping) and all(isinstance(quantity, Quantity) for quantity in found.values())):
            raise UserError(
                f"Expected a Quantity by its name from `measure` of {type(self).__name__}, got {short(found)}."
            )
        for name, quantity in found.items():
            quantity.check(name, layers)
        return {name: replace(quantity, options=quantity.options | how) for name, quantity in found.items()}

    def end(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        self._sample = None


def _monitors(trainer: Trainer) -> list[LayerMonitor[Any]]:
    return [call for call in trainer.callbacks if isinstance(call, LayerMonitor)]  # type: ignore[attr-defined]


def join_all(metrics: Sequence[Mapping[str, Metric]], samples: Sequence[KeptSamples | None]) -> None:
    """Brings the states of all processes together; each then makes of them what it measures by itself."""
    every = [metric for each in metrics for metric in each.values()]
    join(every + [each for each in samples if each is not None])
    for metric in every:
        metric.distributed_available_fn = lambda: False
        metric._update_count = max(metric._update_count, 1)  # else torchmetrics warns where this process had no batch
