"""What all monitors share: measure over an evaluation epoch, log, and keep a record."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure
from torchmetrics import Metric

from callbacks.evaluation import EvaluationCallback, Stage, layerwise
from callbacks.loggers import log_figure, on_epoch_axis
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.precision import refuse_mps
from layersim.runs.rehearsal import made_up

AnyMetric = TypeVar("AnyMetric", bound=Metric)


@dataclass(frozen=True)
class Measured:
    """What one epoch told."""

    scalars: dict[str, float]
    """Numbers to log, by name; the stage (`val/`, `test/`) is put before it."""
    record: dict[str, Any]
    """Keys and values for the epoch's line of `layers.jsonl`."""
    figures: dict[str, Callable[[], Figure]] = field(default_factory=dict)
    """How to draw each figure, by name; drawn by rank zero alone."""
    on_bar: str | None = None
    """Which of the scalars the progress bar shows: it has room for one."""


class LayerMonitor(EvaluationCallback, ABC, Generic[AnyMetric]):
    """Measures something of every layer over each validation and test epoch, on all processes together.

    It consumes the `LayerOutput` that the step returned, and starts anew each epoch.
    """

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}
        """What the last epoch told, in the words of `layers.jsonl`."""
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
    def measure(self, metrics: dict[str, AnyMetric]) -> Measured:
        """What the epoch told; called on every process, so that metrics may reduce across them."""

    def rehearse(self, module: LayerwiseModule, samples: int) -> set[str]:
        """The names of the scalars of an epoch of so many samples, found by measuring made-up ones.

        Raises:
            TooFewSamples: a measure that was asked for needs more.
        """
        return self.rehearsed(self.fresh(module), made_up(module.num_layers, 8, samples))

    def rehearsed(self, metrics: dict[str, AnyMetric], output: LayerOutput) -> set[str]:
        """The names of what is logged of an epoch with this one step."""
        self.update(metrics, output)
        return set(self.measure(metrics).scalars)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_mps(trainer.strategy.root_device)

    def fresh(self, module: LayerwiseModule) -> dict[str, AnyMetric]:
        """The metrics of an epoch of this model."""
        self.unit = "tokens" if module.backbone.reads_tokens else "samples"
        return self.make_metrics(module)

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin(self.fresh(layerwise(pl_module)), pl_module)

    def begin(self, made: dict[str, AnyMetric], pl_module: LightningModule) -> None:
        """An epoch with these metrics."""
        self._metrics = {name: metric.to(pl_module.device) for name, metric in made.items()}

    def take(self, output: Any, batch: Any) -> None:
        self.update(self._metrics, output)

    def finish(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        measured = self.measure(self._metrics)
        self._metrics = {}  # features that a metric kept are let go
        self.record = measured.record
        prefix = "val" if stage == "validate" else stage
        if trainer.is_global_zero:
            on_epoch_axis(trainer, [f"{prefix}/{name}" for name in (*measured.scalars, *measured.figures)])
            for name, draw in measured.figures.items():
                log_figure(trainer, f"{prefix}/{name}", draw())
        for name, value in measured.scalars.items():
            # All processes have the same number, so that reducing changes nothing; Lightning warns where none is asked.
            pl_module.log(f"{prefix}/{name}", value, prog_bar=name == measured.on_bar, sync_dist=True)


def per_layer(name: str, values: list[float]) -> dict[str, float]:
    """`name/layer_01` … for L values, first layer first."""
    return {f"{name}/layer_{layer:02d}": value for layer, value in enumerate(values, start=1)}
