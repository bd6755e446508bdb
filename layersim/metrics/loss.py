"""Layer loss, and the objective's."""

import torch
from torch import Tensor

from layersim.outputs import LayerOutput
from layersim.similarity.layer_metric import LayerMetric


class LayerLoss(LayerMetric):
    """Mean cross-entropy at each layer, and mean objective, over all samples.

    `compute` gives `(layers (L,), objective ())` in nats. Sums in float64 weighted by samples, so that ragged batches
    and any split over processes give the same numbers.
    """

    full_state_update = False
    losses: Tensor
    objective: Tensor
    samples: Tensor

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.add_state("losses", torch.zeros(num_layers, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("objective", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: LayerOutput) -> None:
        assert output.loss is not None
        samples = output.features.values.shape[1]
        self.losses += output.readout.losses.double() * samples
        self.objective += output.loss.double() * samples
        self.samples += samples

    def compute(self) -> tuple[Tensor, Tensor]:
        return self.losses / self.samples, self.objective / self.samples
