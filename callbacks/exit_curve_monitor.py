"""How accurate early exit would be, for every mean exit layer."""

from typing import Any

from torchmetrics import Metric

from callbacks.monitor import LayerMonitor
from layersim.metrics import ExitCounts, accuracy_at, exit_curve_area
from layersim.metrics.exit_curve import THRESHOLDS
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.report.quantity import Quantity


class ExitCurveMonitor(LayerMonitor[Metric]):
    """Logs the area under the curve of accuracy by mean exit layer, where samples leave by confidence, and the accuracy
    at half the layers, and draws the curve.

    Measured from the readouts that are there, with no layer saved: what early exit would do, on these very samples.
    """

    def make_metrics(self, module: LayerwiseModule) -> dict[str, Metric]:
        return {"exits": ExitCounts(module.num_layers)}

    def update(self, metrics: dict[str, Metric], output: LayerOutput) -> None:
        metrics["exits"].update(output)

    def measure(self, metrics: dict[str, Metric]) -> dict[str, Quantity]:
        means, accuracies = metrics["exits"].compute()
        area = exit_curve_area(means, accuracies)
        ticks = {"threshold": [*THRESHOLDS[:-1], None], "mean_exit_layer": means.tolist()}
        told: dict[str, Any] = {"label": "accuracy with early exit", "range": (0, 1), "better": "higher"}
        measured = {
            "exit_curve": Quantity(values=accuracies.tolist(), axes=("threshold",), ticks=ticks, **told),
            "exit_curve_area": Quantity(values=area, range=(0, 1), better="higher"),
        }
        half = means[-1].item() / 2  # at the last threshold nobody leaves early
        if means[0].item() <= half:  # not so for one layer, or for confidences of NaN
            value = accuracy_at(means, accuracies, half)
            measured["accuracy_at_half_layers"] = Quantity(values=value, range=(0, 1), better="higher")
        return measured
