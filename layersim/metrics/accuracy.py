"""Layer accuracy."""

import torch
from torch import Tensor

from layersim.outputs import LayerOutput
from layersim.similarity.layer_metric import LayerMetric


def layer_correct(predictions: Tensor, targets: Tensor) -> Tensor:
    """(L,) how many of the (L, N) predictions equal the (N,) targets."""
    return (predictions == targets).sum(dim=1)


class LayerAccuracy(LayerMetric):
    """Acc(l): the share of samples whose class the head gives when read at layer l (arXiv 2406.14479).

    `compute` gives (L,) shares in float64. Integer states, so that any split over processes gives the same numbers.
    """

    full_state_update = False
    correct: Tensor
    samples: Tensor

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.add_state("correct", torch.zeros(num_layers, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: LayerOutput) -> None:
        assert output.features.targets is not None
        self.correct += layer_correct(output.readout.predictions, output.features.targets)
        self.samples += output.features.targets.numel()

    def compute(self) -> Tensor:
        return self.correct.double() / self.samples
