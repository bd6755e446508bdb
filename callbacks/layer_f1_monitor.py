"""F1 of every layer, for tasks of two classes."""

from typing import Any

from torchmetrics import Metric

from callbacks.monitor import LayerMonitor
from layersim.errors import UserError
from layersim.metrics import LayerF1
from layersim.module import LayerwiseModule
from layersim.report.quantity import Quantity, curve


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
                f"LayerF1Monitor is for two classes, but the model has {module.backbone.num_classes}. Leave it out of "
                "trainer.callbacks."
            )
        return {"f1": LayerF1(module.num_layers, self.positive)}

    def measure(self, metrics: dict[str, Metric]) -> dict[str, Quantity]:
        return {"f1": curve(metrics["f1"].compute().tolist(), label="F1", range=(0, 1), better="higher")}
