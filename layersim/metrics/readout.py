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

    def add(self, **sums: Tensor | int) -> None:
        """Adds a step's sums to the states of their names; a UserError where they are of other layers than these."""
        for name, addend in sums.items():
            state = getattr(self, name)
            if (came := torch.as_tensor(addend).shape) != state.shape:
                told = f"expected {name} of shape {tuple(state.shape)}, got {tuple(came)}"
                raise UserError(f"{type(self).__name__}: {told}: set num_layers to that of the layers that are read")
            state += addend


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
        self.add(correct=(output.readout.predictions == targets).sum(dim=1), samples=len(targets))

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
        self.add(counts=(right @ right.T).long(), samples=right.shape[1])

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
        losses, objective = output.readout.losses.double(), output.loss.double()
        self.add(losses=losses * samples, objective=objective * samples, samples=samples)

    def compute(self) -> tuple[Tensor, Tensor]:
        return self.losses / self.samples, self.objective / self.samples


class LayerF1(ReadoutMetric):
    """F1(l) = 2 TP / (2 TP + FP + FN) of the class `positive` when the head is read at layer l: GLUE's measure for MRPC
    and QQP.

    `compute` gives (L,) shares in float64; 0 where positives are never found, NaN where there are none, neither among
    the targets nor among a layer's predictions.
    """

    counts: Tensor
    """(3, L) true positives, false positives and false negatives."""

    def __init__(self, num_layers: int, positive: int = 1) -> None:
        super().__init__(counts=counts(3, num_layers))
        self.positive = positive
        self.keep_apart(positive)

    def update(self, output: LayerOutput) -> None:
        said, true = output.readout.predictions == self.positive, targets_of(output) == self.positive
        self.add(counts=torch.stack([kind.sum(dim=1) for kind in (said & true, said & ~true, ~said & true)]))

    def compute(self) -> Tensor:
        found, false, missed = self.counts.double().unbind()
        return 2 * found / (2 * found + false + missed)


def saturation_layer(predictions: Tensor) -> Tensor:
    """(N,) smallest layer, counted from 1, from which (L, N) predictions never change up to L (Geva et al. 2022)."""
    predictions = torch.as_tensor(predictions)
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
        predictions = output.readout.predictions
        layers = torch.arange(1, len(predictions) + 1, device=predictions.device)
        self.add(counts=(saturation_layer(predictions) == layers[:, None]).sum(dim=1))

    def compute(self) -> Tensor:
        return self.counts
