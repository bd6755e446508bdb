"""How accurate early exit would be, for every mean exit layer."""

import math

from callbacks.monitor import LayerMonitor, Measured
from layersim.exits import ExitCounts, accuracy_at, exit_curve_area
from layersim.exits.curve import spread
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.report.tradeoff import exit_curve_figure


class ExitCurveMonitor(LayerMonitor[ExitCounts]):
    """Logs the area under the curve of accuracy by mean exit layer, where samples leave by confidence, and the accuracy
    at half the layers, and draws the curve.

    Measured from the readouts that are there, with no layer saved: what early exit would do, on these very samples.
    """

    def make_metrics(self, module: LayerwiseModule) -> dict[str, ExitCounts]:
        return {"exits": ExitCounts(module.num_layers)}

    def update(self, metrics: dict[str, ExitCounts], output: LayerOutput) -> None:
        metrics["exits"].update(output)

    def measure(self, metrics: dict[str, ExitCounts]) -> Measured:
        means, accuracies = metrics["exits"].compute()
        area = exit_curve_area(means, accuracies)
        shown = spread(means)
        thresholds = [None if math.isinf(each) else each for each in metrics["exits"].thresholds[shown].tolist()]
        curve = {"mean_exit_layer": means[shown].tolist(), "accuracy": accuracies[shown].tolist()}
        scalars = {"exit_curve_area": area}
        half = means[-1].item() / 2  # at the last threshold nobody leaves early
        if means[0].item() <= half:  # not so for one layer, or for confidences of NaN
            scalars["accuracy_at_half_layers"] = accuracy_at(means, accuracies, half)
        return Measured(
            scalars=scalars,
            record={"exit_curve": {"threshold": thresholds, **curve}, "exit_curve_area": area},
            figures={"exit_curve": lambda: exit_curve_figure(**curve)},
        )
