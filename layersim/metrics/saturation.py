"""Saturation: from which layer on the prediction no longer changes."""

import torch
from torch import Tensor

from layersim.outputs import LayerOutput
from layersim.similarity.layer_metric import LayerMetric


def saturation_layer(predictions: Tensor) -> Tensor:
    """(N,) smallest layer, counted from 1, from which (L, N) predictions never change up to L (Geva et al. 2022)."""
    agrees = predictions == predictions[-1]
    settled = agrees.flip(0).cumprod(dim=0).sum(dim=0)  # layers at the end that all agree with the last
    return predictions.shape[0] - settled + 1


def saturated_early(counts: Tensor) -> float:
    """Share of samples that saturate before the last layer, from (L,) counts by saturation layer."""
    return float(1 - counts[-1].double() / counts.sum())


def mean_saturation_layer(counts: Tensor) -> float:
    """Mean saturation layer, counted from 1, from (L,) counts by saturation layer."""
    layers = torch.arange(1, len(counts) + 1, dtype=torch.float64, device=counts.device)
    return float((counts * layers).sum() / counts.sum())


class Saturation(LayerMetric):
    """Counts samples by saturation layer; `compute` gives (L,) integers, first layer first. Exact on any split."""

    full_state_update = False
    counts: Tensor

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(num_layers, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: LayerOutput) -> None:
        layers = saturation_layer(output.readout.predictions)
        self.counts += torch.stack([(layers == layer).sum() for layer in range(1, len(self.counts) + 1)])

    def compute(self) -> Tensor:
        return self.counts
