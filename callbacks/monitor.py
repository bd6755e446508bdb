"""What all monitors share: measure over an evaluation epoch, log, draw, and publish what was measured."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torchmetrics import Metric

from callbacks.evaluation import EvaluationCallback, Stage, layerwise
from callbacks.loggers import log_figure, on_epoch_axis
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.precision import refuse_mps
from layersim.report.figures import figures_of
from layersim.report.quantity import Quantity, logged
from layersim.runs.rehearsal import made_up

AnyMetric = TypeVar("AnyMetric", bound=Metric)


class LayerMonitor(EvaluationCallback, ABC, Generic[AnyMetric]):
    """Measures something of every layer over each validation and test epoch, on all processes together.

    It consumes the `LayerOutput` that the step returned, and starts anew each epoch. What it publishes is logged, drawn
    and recorded by axes, unit and range, whatever its name is.
    """

    on_bar: str | None = None
    """Which of the logged names the progress bar shows: it has room for one."""

    def __init__(self) -> None:
        self.quantities: dict[str, Quantity] = {}
        """What the last epoch told, by name."""
        self.num_layers = 0
        """L of what is measured."""
        self.num_samples = 0
        """N of all processes, where the monitor has counted them."""
        self.unit = "samples"
        """What a sample of the model is: `samples` or `tokens`."""
        self._metrics: dict[str, AnyMetric] = {}

    @abstractmethod
    def make_metrics(self, module: LayerwiseModule) -> dict[str, AnyMetric]:
        """Fresh metrics for one epoch of this model, by names of the monitor's own."""

    @abstractmethod
    def update(self, metrics: dict[str, AnyMetric], output: LayerOutput) -> None:
        """Takes in one batch."""

    @abstractmethod
    def measure(self, metrics: dict[str, AnyMetric]) -> dict[str, Quantity]:
        """What the epoch told, by name; called on every process, so that metrics may reduce across them."""

    def figures(self, quantities: Mapping[str, Quantity]) -> dict[str, Callable[[], Figure]]:
        """How to draw what the epoch told, by the figure's name; drawn by rank zero alone."""
        return figures_of(quantities, self.unit)

    def rehearse(self, module: LayerwiseModule, samples: int) -> set[str]:
        """The names of what is logged of an epoch of so many samples, found by measuring made-up ones.

        Raises:
            TooFewSamples: a measure that was asked for needs more.
        """
        return self.rehearsed(self.fresh(module), made_up(module.num_layers, 8, samples))

    def rehearsed(self, metrics: dict[str, AnyMetric], output: LayerOutput) -> set[str]:
        """The names of what is logged of an epoch with this one step."""
        self.update(metrics, output)
        return {name for name, _ in logged(self.measure(metrics))}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_mps(trainer.strategy.root_device)

    def fresh(self, module: LayerwiseModule) -> dict[str, AnyMetric]:
        """The metrics of an epoch of this model."""
        self.unit = "tokens" if module.backbone.reads_tokens else "samples"
        self.num_layers = module.num_layers
        return self.make_metrics(module)

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin(self.fresh(layerwise(pl_module)), pl_module)

    def begin(self, made: dict[str, AnyMetric], pl_module: LightningModule) -> None:
        """An epoch with these metrics."""
        self._metrics = {name: metric.to(pl_module.device) for name, metric in made.items()}

    def take(self, output: Any, batch: Any) -> None:
        self.update(self._metrics, output)

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        quantities = self.measure(self._metrics)
        self._metrics = {}  # features that a metric kept are let go
        for name, quantity in quantities.items():
            quantity.check(name, self.num_layers)
        self.quantities = quantities
        prefix = "val" if stage == "validate" else stage
        numbers = dict(logged(quantities))
        if trainer.is_global_zero:
            figures = self.figures(quantities)
            on_epoch_axis(trainer, [f"{prefix}/{name}" for name in (*numbers, *figures)])
            for name, draw in figures.items():
                log_figure(trainer, f"{prefix}/{name}", draw())
        for name, value in numbers.items():
            # All processes have the same number, so that reducing changes nothing; Lightning warns where none is asked.
            pl_module.log(f"{prefix}/{name}", value, prog_bar=name == self.on_bar, sync_dist=True)
