"""What somebody outside of the package writes to measure something of their own."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import MeanMetric

from callbacks.monitor import LayerMonitor
from layersim import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.report.quantity import Quantity, curve


class Lengths(LayerMonitor[MeanMetric]):
    def make_metrics(self, module: LayerwiseModule) -> dict[str, MeanMetric]:
        return {str(layer): MeanMetric() for layer in range(module.num_layers)}

    def update(self, metrics: dict[str, MeanMetric], output: LayerOutput) -> None:
        for metric, features in zip(metrics.values(), output.features.values, strict=True):
            metric.update(features.norm(dim=1))

    def measure(self, metrics: dict[str, MeanMetric]) -> dict[str, Quantity]:
        lengths = [metric.compute().item() for metric in metrics.values()]
        return {"length": curve(lengths, label="length of features", range=(0, None), better="lower")}


class Weights(Callback):
    """No monitor of layersim's; it knows nothing but `Quantity`."""

    quantities: dict[str, Quantity]

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        kinds = ("attn", "mlp")
        blocks = pl_module.backbone.model.blocks  # type: ignore[union-attr]
        norms = [[getattr(block, kind).state_dict() for kind in kinds] for block in blocks]  # type: ignore[union-attr]
        table = [[sum(float(value.square().sum()) for value in part.values()) for part in row] for row in norms]
        self.quantities = {
            "weights": curve([sum(row) for row in table], range=(0, None)),
            "weights_by_kind": Quantity(
                values=[sum(column) for column in zip(*table, strict=True)], axes=("kind",), ticks={"kind": [*kinds]}
            ),
        }
