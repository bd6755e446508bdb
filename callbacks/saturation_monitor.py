"""From which layer on predictions no longer change."""

from torchmetrics import Metric

from callbacks.monitor import LayerMonitor, Measured
from layersim.metrics import Saturation, mean_saturation_layer, saturated_early
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.report.figures import saturation_histogram


class SaturationMonitor(LayerMonitor[Metric]):
    """Logs the share of samples that are saturated early and the mean saturation layer, and draws the histogram."""

    def make_metrics(self, module: LayerwiseModule) -> dict[str, Metric]:
        return {"saturation": Saturation(module.num_layers)}

    def update(self, metrics: dict[str, Metric], output: LayerOutput) -> None:
        metrics["saturation"].update(output)

    def measure(self, metrics: dict[str, Metric]) -> Measured:
        counts = metrics["saturation"].compute()
        summary = {"saturated_early": saturated_early(counts), "mean_saturation_layer": mean_saturation_layer(counts)}
        return Measured(
            scalars=summary,
            record={"saturation": counts.tolist(), **summary},
            figures={"saturation": lambda: saturation_histogram(counts.tolist(), unit=self.unit)},
        )
