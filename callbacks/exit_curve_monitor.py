"""How accurate early exit would be, for every mean exit layer."""

import math
from typing import Any

from callbacks.monitor import LayerMonitor
from layersim.exits import ExitCounts, accuracy_at, exit_curve_area
from layersim.exits.curve import spread
from layersim.module import LayerwiseModule
from layersim.report.quantity import Quantity


class ExitCurveMonitor(LayerMonitor[ExitCounts]):
    """Logs the area under the curve of accuracy by mean exit layer, where samples leave by confidence, and the accuracy
    at half the layers, and draws the curve.

    Measured from the readouts that are there, with no layer saved: what early exit would do, on these very samples.
    """

    reads_labels = True

    def make_metrics(self, module: LayerwiseModule) -> dict[str, ExitCounts]:
        return {"exits": ExitCounts(module.num_layers)}

    def measure(self, metrics: dict[str, ExitCounts]) -> dict[str, Quantity]:
        means, accuracies = metrics["exits"].compute()
        area = exit_curve_area(means, accuracies)
        shown = spread(means)
        thresholds = [None if math.isinf(each) else each for each in metrics["exits"].thresholds[shown].tolist()]
        ticks = {"threshold": thresholds, "mean_exit_layer": means[shown].tolist()}
        told: dict[str, Any] = {"label": "accuracy with early exit", "range": (0, 1), "better": "higher"}
        measured = {
            "exit_curve": Quantity(values=accuracies[shown].tolist(), axes=("threshold",), ticks=ticks, **told),
            "exit_curve_area": Quantity(values=area, range=(0, 1), better="higher"),
        }
        half = means[-1].item() / 2  # at the last threshold nobody leaves early
        if means[0].item() <= half:  # not so for one layer, or for confidences of NaN
            value = accuracy_at(means, accuracies, half)
            measured["accuracy_at_half_layers"] = Quantity(values=value, range=(0, 1), better="higher")
        return measured
