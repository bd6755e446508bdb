"""Accuracy and loss of every layer."""

import math
from typing import Any, Literal

from torchmetrics import Metric

from callbacks.monitor import LayerMonitor, Measured, per_layer
from layersim.errors import UserError
from layersim.metrics import LayerLoss, RightAtBoth, measured_depth
from layersim.metrics.effective_depth import EPSILON, check_epsilon
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.report.figures import layer_accuracy_curve, layer_perplexity_curve
from layersim.report.numbers import perplexity


class LayerAccuracyMonitor(LayerMonitor[Metric]):
    """Logs accuracy and loss of every layer, of the last one (`val/accuracy`), the objective (`val/loss`), the
    effective depth and the layer of the best accuracy (the first of several), and draws the accuracy by layer; of a
    language model the perplexity of every layer too.

    Args:
        epsilon: the effective depth is the first layer whose accuracy is within this of the best layer's, 0 … 1; or
            `interval`: the first whose difference from the best, on the same samples, is within its 95 % interval.
        absolute_epsilon: records beside it the first layer whose accuracy is at least 1 − ε, the effective depth of
            arXiv 2406.14479.

    Raises:
        UserError: ε outside 0 … 1; of a language model `interval`, since tokens of one text depend on each other.
    """

    def __init__(self, epsilon: float | Literal["interval"] = EPSILON, absolute_epsilon: float | None = None) -> None:
        super().__init__()
        for name, share in {"epsilon": epsilon, "absolute_epsilon": absolute_epsilon}.items():
            if share is not None and share != "interval":
                check_epsilon(share, f"LayerAccuracyMonitor's {name}")
        self.epsilon = epsilon
        self.absolute_epsilon = absolute_epsilon

    def make_metrics(self, module: LayerwiseModule) -> dict[str, Metric]:
        if module.backbone.reads_tokens and self.epsilon == "interval":
            raise UserError(
                "LayerAccuracyMonitor's epsilon: tokens of one text depend on each other, so that no interval follows "
                f"from their number. Set a share of the tokens, such as {EPSILON}."
            )
        return {"right": RightAtBoth(module.num_layers), "loss": LayerLoss(module.num_layers)}

    def update(self, metrics: dict[str, Metric], output: LayerOutput) -> None:
        for metric in metrics.values():
            metric.update(output)

    def measure(self, metrics: dict[str, Metric]) -> Measured:
        right, samples = metrics["right"].compute()
        losses, objective = metrics["loss"].compute()
        shares, nats = (right.diagonal().double() / samples).tolist(), losses.tolist()
        tokens, depth = self.unit == "tokens", dict[str, Any]()
        if samples:
            depth = measured_depth(right, int(samples), self.epsilon, self.absolute_epsilon, independent=not tokens)
        scalars = {
            "accuracy": shares[-1],
            "loss": float(objective),
            "effective_depth": float(depth.get("layer", math.nan)),
            "best_layer": float(depth.get("best", math.nan)),
            **per_layer("accuracy", shares),
            **per_layer("loss", nats),
        }
        if self.absolute_epsilon is not None:
            scalars["absolute_depth"] = float(depth.get("absolute_layer", math.nan))
        figures = {"layer_accuracy": lambda: layer_accuracy_curve({"accuracy": shares})}
        if tokens:
            surprise = perplexity(nats)
            scalars |= {"perplexity": surprise[-1], **per_layer("perplexity", surprise)}
            figures["layer_perplexity"] = lambda: layer_perplexity_curve({"perplexity": surprise})
        return Measured(
            scalars=scalars,
            record={"accuracy": shares, "loss": nats, **({"effective_depth": depth} if depth else {})},
            figures=figures,
            on_bar="perplexity" if tokens else "accuracy",
        )
