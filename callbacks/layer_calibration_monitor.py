"""Whether every layer is as sure as it is right."""

from callbacks.monitor import LayerMonitor
from layersim.metrics.calibration import BINS, LayerCalibration
from layersim.module import LayerwiseModule
from layersim.report.quantity import LAYER, Quantity, curve


class LayerCalibrationMonitor(LayerMonitor[LayerCalibration]):
    """Logs of every layer the expected calibration error, the Brier score, and by how much its confidence is above its
    accuracy; draws these, and the last by confidence: a reliability diagram, a row a layer.

    Tokens of one text depend on each other, so that a language model's diagram has no intervals.
    """

    reads_labels = True

    def make_metrics(self, module: LayerwiseModule) -> dict[str, LayerCalibration]:
        return {"calibration": LayerCalibration(module.num_layers)}

    def measure(self, metrics: dict[str, LayerCalibration]) -> dict[str, Quantity]:
        found = {name: values.tolist() for name, values in metrics["calibration"].compute().items()}
        interval = {"confidence": 0.95, "low": found["low"], "high": found["high"]}
        return {
            "calibration_error": curve(
                found["error"], label="calibration error", range=(0, 1), better="lower", options={"bins": BINS}
            ),
            "brier": curve(found["brier"], label="Brier score", range=(0, 2), better="lower"),
            "overconfidence": curve(found["overconfidence"], label="confidence − accuracy", range=(-1, 1)),
            "reliability": Quantity(
                values=found["gap"],
                axes=(LAYER, "confidence"),
                label="confidence − accuracy",
                range=(-1, 1),
                interval=None if self.unit == "tokens" else interval,
                ticks={"confidence": [round((place + 0.5) / BINS, 2) for place in range(BINS)]},
            ),
        }
