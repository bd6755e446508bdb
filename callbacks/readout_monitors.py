"""What a classifier says at every layer: how often it is right, how sure it is, when it stays, where it could leave."""

import math
from typing import Any, Literal

from torchmetrics import Metric

from callbacks.monitor import LayerMonitor
from layersim.errors import UserError, check_share
from layersim.exits import ExitCounts, accuracy_at, exit_curve_area
from layersim.exits.curve import spread
from layersim.metrics import (
    LayerF1,
    LayerLoss,
    RightAtBoth,
    Saturation,
    mean_saturation_layer,
    measured_depth,
    saturated_early,
)
from layersim.metrics.calibration import BINS, LayerCalibration
from layersim.metrics.effective_depth import CONFIDENCE, EPSILON
from layersim.module import LayerwiseModule
from layersim.report.quantity import LAYER, RATIO, Quantity, curve, perplexity


class LayerAccuracyMonitor(LayerMonitor[Metric]):
    """Logs accuracy and loss of every layer, of the last one (`val/accuracy`), the objective (`val/loss`), the
    effective depth and the layer of the best accuracy (the first of several), and draws the accuracy by layer; of a
    language model the perplexity of every layer too.

    Args:
        epsilon: the effective depth is the first layer whose accuracy is within this of the best layer's, 0 … 1; or
            `interval`: the first whose difference from the best, on the same samples, is within its 95 % interval.
        absolute_epsilon: records beside it the first layer whose accuracy is at least 1 − ε, the effective depth of
            arXiv 2406.14479.
        **named: the parts of a module that is not ours; see LayerMonitor.

    Raises:
        UserError: ε outside 0 … 1; of a language model `interval`, since tokens of one text depend on each other.
    """

    reads_labels = True

    def __init__(
        self, epsilon: float | Literal["interval"] = EPSILON, absolute_epsilon: float | None = None, **named: Any
    ) -> None:
        super().__init__(**named)
        for name, share in {"epsilon": epsilon, "absolute_epsilon": absolute_epsilon}.items():
            if share is not None and share != "interval":
                check_share(f"LayerAccuracyMonitor's {name}", share, zero=True, one=True)
        self.epsilon = epsilon
        self.absolute_epsilon = absolute_epsilon

    def make_metrics(self, module: LayerwiseModule) -> dict[str, Metric]:
        if module.backbone.reads_tokens and self.epsilon == "interval":
            raise UserError(
                "LayerAccuracyMonitor's epsilon: tokens of one text depend on each other, so that no interval follows "
                f"from their number. Set a share of the tokens, such as {EPSILON}."
            )
        return {"right": RightAtBoth(module.num_layers), "loss": LayerLoss(module.num_layers)}

    def measure(self, metrics: dict[str, Metric]) -> dict[str, Quantity]:
        right, samples = metrics["right"].compute()
        losses, objective = metrics["loss"].compute()
        shares, nats = (right.diagonal().double() / samples).tolist(), losses.tolist()
        tokens = self.unit == "tokens"
        self.on_bar = "perplexity" if tokens else "accuracy"
        measured = {}
        if tokens:
            measured["perplexity"] = curve(perplexity(nats), unit=RATIO, range=(1, None), better="lower")
        measured["accuracy"] = curve(shares, range=(0, 1), better="higher")
        measured["loss"] = curve(nats, unit="nats", range=(0, None), better="lower", overall=float(objective))
        if samples:
            how = self.epsilon, self.absolute_epsilon
            measured |= _depth(measured_depth(right, int(samples), *how, independent=not tokens))
        return measured


def _depth(found: dict[str, Any]) -> dict[str, Quantity]:
    """The effective depth, the best layer, and how far the one is behind the other."""
    interval = {"confidence": CONFIDENCE, "low": found["low"], "high": found["high"]} if "low" in found else None
    told = {
        "effective_depth": Quantity(values=found["layer"], unit=LAYER, options={"epsilon": found["epsilon"]}),
        "best_layer": Quantity(values=found["best"], unit=LAYER),
        "behind_best": Quantity(values=found["behind"], range=(0, 1), better="lower", interval=interval),
    }
    if "absolute_epsilon" in found:
        layer, epsilon = found.get("absolute_layer", math.nan), found["absolute_epsilon"]
        told["absolute_depth"] = Quantity(values=layer, unit=LAYER, options={"epsilon": epsilon})
    return told


class LayerF1Monitor(LayerMonitor[Metric]):
    """Logs F1 of every layer, and of the last one (`val/f1`): GLUE's measure for MRPC and QQP.

    A recipe lists it under `trainer.callbacks`, beside which the default ones stay.

    Args:
        positive: the class that is to be found, 0 or 1.
        **named: the parts of a module that is not ours; see LayerMonitor.

    Raises:
        UserError: a model that tells more than two classes apart.
    """

    reads_labels = True

    def __init__(self, positive: int = 1, **named: Any) -> None:
        super().__init__(**named)
        if positive not in (0, 1):
            raise UserError(f"Expected positive 0 or 1, one of two classes, but got {positive}.")
        self.positive = positive

    def make_metrics(self, module: LayerwiseModule) -> dict[str, Metric]:
        if module.backbone.num_classes != 2:
            raise UserError(
                f"LayerF1Monitor, f1, is for two classes, but the model has {module.backbone.num_classes}. "
                "Leave it out."
            )
        return {"f1": LayerF1(module.num_layers, self.positive)}

    def measure(self, metrics: dict[str, Metric]) -> dict[str, Quantity]:
        return {"f1": curve(metrics["f1"].compute().tolist(), label="F1", range=(0, 1), better="higher")}


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
