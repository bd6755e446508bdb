"""From which layer on predictions no longer change."""

from torchmetrics import Metric

from callbacks.monitor import LayerMonitor
from layersim.metrics import Saturation, mean_saturation_layer, saturated_early
from layersim.module import LayerwiseModule
from layersim.report.quantity import LAYER, Quantity, curve


class SaturationMonitor(LayerMonitor[Metric]):
    """Logs the share of samples that are saturated early and the mean saturation layer, and draws the histogram."""

    def make_metrics(self, module: LayerwiseModule) -> dict[str, Metric]:
        return {"saturation": Saturation(module.num_layers)}

    def measure(self, metrics: dict[str, Metric]) -> dict[str, Quantity]:
        counts = metrics["saturation"].compute()
        mean = mean_saturation_layer(counts)
        return {
            "saturation": curve(counts.tolist(), label="saturated here", unit=self.unit, range=(0, None)),
            "saturated_early": Quantity(values=saturated_early(counts), unit="share", range=(0, 1)),
            "mean_saturation_layer": Quantity(values=mean, unit=LAYER, range=(1, self.num_layers)),
        }
