"""Accuracy and loss of every layer."""

from torchmetrics import Metric

from callbacks.monitor import LayerMonitor, Measured, per_layer
from layersim.metrics import LayerAccuracy, LayerLoss, effective_depth
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.report.figures import layer_accuracy_curve


class LayerAccuracyMonitor(LayerMonitor[Metric]):
    """Logs accuracy and loss of every layer, of the last one (`val/accuracy`), the objective (`val/loss`) and the
    effective depth, the layer of the best accuracy (the first of several), and draws the accuracy by layer.

    Args:
        epsilon: the error that the effective depth tolerates, 0 … 1.
    """

    def __init__(self, epsilon: float = 0.05) -> None:
        super().__init__()
        self.epsilon = epsilon

    def make_metrics(self, module: LayerwiseModule) -> dict[str, Metric]:
        return {"accuracy": LayerAccuracy(module.num_layers), "loss": LayerLoss(module.num_layers)}

    def update(self, metrics: dict[str, Metric], output: LayerOutput) -> None:
        for metric in metrics.values():
            metric.update(output)

    def measure(self, metrics: dict[str, Metric]) -> Measured:
        accuracy = metrics["accuracy"].compute()
        losses, objective = metrics["loss"].compute()
        depth = effective_depth(accuracy, self.epsilon)
        shares = accuracy.tolist()
        return Measured(
            scalars={
                "accuracy": shares[-1],
                "loss": float(objective),
                "effective_depth": float(depth),
                "best_layer": float(accuracy.argmax() + 1),
                **per_layer("accuracy", shares),
                **per_layer("loss", losses.tolist()),
            },
            record={
                "accuracy": shares,
                "loss": losses.tolist(),
                "effective_depth": {"epsilon": self.epsilon, "layer": depth},
            },
            figures={"layer_accuracy": lambda: layer_accuracy_curve({"accuracy": shares})},
        )
