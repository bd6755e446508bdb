"""F1 of every layer."""

import torch
from torch import Tensor

from layersim.outputs import LayerOutput
from layersim.similarity.layer_metric import LayerMetric


def layer_confusion(predictions: Tensor, targets: Tensor, positive: int = 1) -> Tensor:
    """(3, L) true positives, false positives and false negatives of (L, N) predictions against (N,) targets."""
    said, true = predictions == positive, targets == positive
    return torch.stack([(said & true).sum(dim=1), (said & ~true).sum(dim=1), (~said & true).sum(dim=1)])


class LayerF1(LayerMetric):
    """F1(l) = 2 TP / (2 TP + FP + FN) of one class when the head is read at layer l: GLUE's measure for MRPC and QQP.

    `compute` gives (L,) shares in float64; 0 where positives are never found, NaN where there are none, neither among
    the targets nor among a layer's predictions. Integer states, so that any split over processes gives the same
    numbers.

    Args:
        num_layers: L.
        positive: the class that is to be found.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_layers: int, positive: int = 1) -> None:
        super().__init__()
        self.positive = positive
        self.add_state("counts", torch.zeros(3, num_layers, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: LayerOutput) -> None:
        assert output.features.targets is not None
        self.counts += layer_confusion(output.readout.predictions, output.features.targets, self.positive)

    def compute(self) -> Tensor:
        found, false, missed = self.counts.double().unbind()
        return 2 * found / (2 * found + false + missed)
