"""What a readout tells of every layer: accuracy, loss, F1, and from which layer on predictions stay. Letters: L layers,
N samples."""

import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.outputs import LayerOutput
from layersim.similarity.layer_metric import LayerMetric


class ReadoutMetric(LayerMetric):
    """Sums over samples, integers or float64, so that any split over batches and processes gives the same numbers."""

    full_state_update = False

    def __init__(self, **sums: Tensor) -> None:
        """`sums`: the states, as they are before the first sample."""
        super().__init__()
        for name, start in sums.items():
            self.add_state(name, start, dist_reduce_fx="sum")


def counts(*shape: int) -> Tensor:
    """Zeros to count samples in."""
    return torch.zeros(shape, dtype=torch.int64)


def targets_of(output: LayerOutput) -> Tensor:
    """(N,) classes, of a step that has them; a UserError where it has none."""
    if output.features.targets is None:
        raise UserError("Expected a label for each sample, which this metric reads, but the batch has none.")
    return output.features.targets


class LayerAccuracy(ReadoutMetric):
    """Acc(l): the share of samples whose class the head gives when read at layer l (arXiv 2406.14479).

    `compute` gives (L,) shares in float64.
    """

    correct: Tensor
    samples: Tensor

    def __init__(self, num_layers: int) -> None:
        super().__init__(correct=counts(num_layers), samples=counts())

    def update(self, output: LayerOutput) -> None:
        targets = targets_of(output)
        self.correct += (output.readout.predictions == targets).sum(dim=1)
        self.samples += targets.numel()

    def compute(self) -> Tensor:
        return self.correct.double() / self.samples


class RightAtBoth(ReadoutMetric):
    """How many samples are right at layer l and at layer m, whose diagonal counts those that are right at l.

    `compute` gives `(counts (L, L), samples ())`, which hold what pairs of layers differ by: `counts[l, l] − counts[l,
    m]` samples are right at l and wrong at m.
    """

    counts: Tensor
    samples: Tensor

    def __init__(self, num_layers: int) -> None:
        super().__init__(counts=counts(num_layers, num_layers), samples=counts())

    def update(self, output: LayerOutput) -> None:
        right = (output.readout.predictions == targets_of(output)).double()  # whole numbers, exact to 2⁵³
        self.counts += (right @ right.T).long()
        self.samples += right.shape[1]

    def compute(self) -> tuple[Tensor, Tensor]:
        return self.counts, self.samples


class LayerLoss(ReadoutMetric):
    """Mean cross-entropy at each layer, and mean objective, over all samples; `compute` gives `(layers (L,), objective
    ())` in nats, weighted by samples, so that batches may be ragged."""

    losses: Tensor
    objective: Tensor
    samples: Tensor

    def __init__(self, num_layers: int) -> None:
        zeros = torch.zeros(num_layers, dtype=torch.float64)
        super().__init__(losses=zeros, objective=zeros.new_zeros(()), samples=counts())

    def update(self, output: LayerOutput) -> None:
        targets_of(output)
        assert output.loss is not None
        samples = output.features.values.shape[1]
        self.losses += output.readout.losses.double() * samples
        self.objective += output.loss.double() * samples
        self.samples += samples

    def compute(self) -> tuple[Tensor, Tensor]:
        return self.losses / self.samples, self.objective / self.samples


class LayerF1(ReadoutMetric):
    """F1(l) = 2 TP / (2 TP + FP + FN) of one class when the head is read at layer l: GLUE's measure for MRPC and QQP.

    `compute` gives (L,) shares in float64; 0 where positives are never found, NaN where there are none, neither among
    the targets nor among a layer's predictions.

    Args:
        num_layers: L.
        positive: the class that is to be found.
    """

    counts: Tensor
    """(3, L) true positives, false positives and false negatives."""

    def __init__(self, num_layers: int, positive: int = 1) -> None:
        super().__init__(counts=counts(3, num_layers))
        self.positive = positive

    def update(self, output: LayerOutput) -> None:
        said, true = output.readout.predictions == self.positive, targets_of(output) == self.positive
        self.counts += torch.stack([(said & true).sum(dim=1), (said & ~true).sum(dim=1), (~said & true).sum(dim=1)])

    def compute(self) -> Tensor:
        found, false, missed = self.counts.double().unbind()
        return 2 * found / (2 * found + false + missed)


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


class Saturation(ReadoutMetric):
    """Counts samples by saturation layer; `compute` gives (L,) integers, first layer first."""

    counts: Tensor

    def __init__(self, num_layers: int) -> None:
        super().__init__(counts=counts(num_layers))

    def update(self, output: LayerOutput) -> None:
        layers = saturation_layer(output.readout.predictions)
        self.counts += torch.stack([(layers == layer).sum() for layer in range(1, len(self.counts) + 1)])

    def compute(self) -> Tensor:
        return self.counts
