"""Accuracy and loss of every layer."""

import math
from typing import Any, Literal

from torchmetrics import Metric

from callbacks.monitor import LayerMonitor
from layersim.errors import UserError
from layersim.metrics import LayerLoss, RightAtBoth, measured_depth
from layersim.metrics.effective_depth import CONFIDENCE, EPSILON, check_epsilon
from layersim.module import LayerwiseModule
from layersim.report.numbers import perplexity
from layersim.report.quantity import LAYER, RATIO, Quantity, curve


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

    def measure(self, metrics: dict[str, Metric]) -> dict[str, Quantity]:
        right, samples = metrics["right"].compute()
        losses, objective = metrics["loss"].compute()
        shares, nats = (right.diagonal().double() / samples).tolist(), losses.tolist()
        tokens = self.unit == "tokens"
        self.on_bar = "perplexity" if tokens else "accuracy"
        measured = (
            {"perplexity": curve(perplexity(nats), unit=RATIO, range=(1, None), better="lower")} if tokens else {}
        )
        measured["accuracy"] = curve(shares, range=(0, 1), better="higher")
        measured["loss"] = curve(nats, unit="nats", range=(0, None), better="lower", overall=float(objective))
        if samples:
            independent = not tokens
            measured |= _depth(
                measured_depth(right, int(samples), self.epsilon, self.absolute_epsilon, independent=independent)
            )
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
