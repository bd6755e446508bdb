"""Whether a layer is as sure as it is right. Letters: L layers, N samples, C classes, B bins of confidence."""

import torch
from torch import Tensor

from layersim.metrics.readout import ReadoutMetric, targets_of
from layersim.outputs import LayerOutput

BINS = 15
"""Of equal width in 0 … 1 (Guo et al. 2017, arXiv 1706.04599)."""
REACH = 1.959963984540054
"""Standard errors of a 95 % interval."""


def against_target(log_probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What (…, C) log-probabilities say of the (…) true classes, (…) each, with one exponential of each probability:
    ln p, the log-odds ln p / (1 − p), which rise long after p is 1 in float32, and the Brier score Σc (pc − 1[c =
    target])² (Brier 1950), 0 sure and right … 2 sure and wrong."""
    own = targets.unsqueeze(-1)
    likelihoods = log_probabilities.gather(-1, own).squeeze(-1)
    others = log_probabilities.scatter(-1, own, -torch.inf)
    most = others.amax(dim=-1, keepdim=True)
    most = most.masked_fill(most.isneginf(), 0)  # where no other class is possible at all
    others = others.sub_(most).exp_()
    most = most.squeeze(-1)
    odds = likelihoods - most - others.sum(dim=-1).log()
    brier = likelihoods.expm1().square() + (2 * most).exp() * torch.linalg.vecdot(others, others)
    return likelihoods, odds, brier


def calibration_sums(confidences: Tensor, right: Tensor, briers: Tensor) -> Tensor:
    """(L, B + 1, 4) float64 sums of 1, confidence, 1[right] and Brier score over the samples in each bin, from (L, N)
    of each; as with torchmetrics a confidence of exactly 1 has a bin of its own."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=confidences.dtype, device=confidences.device)
    bins = torch.bucketize(confidences.contiguous(), edges, right=True) - 1
    rows = bins + torch.arange(len(bins), device=bins.device)[:, None] * len(edges)
    values = torch.stack([torch.ones_like(briers), confidences, right, briers], dim=-1).double()
    sums = values.new_zeros(len(bins) * len(edges), 4).index_add_(0, rows.flatten(), values.flatten(0, 1))
    return sums.view(len(bins), len(edges), 4)


def calibration(sums: Tensor) -> dict[str, Tensor]:
    """What `calibration_sums` tell of each layer, float64.

    `error`, (L,): the expected calibration error Σb nb / N |confidence − accuracy|, in 0 … 1. `brier`, (L,): the mean
    Brier score, 0 … 2. `overconfidence`, (L,): mean confidence − accuracy. `gap`, (L, B): the same of the samples in
    each bin, a reliability diagram; NaN where there are none. `low` and `high`, (L, B): its 95 % interval, of the
    accuracy (Wilson 1927), with samples as independent.
    """
    samples = sums[..., 0].sum(dim=1)
    excess = sums[..., 1] - sums[..., 2]
    bins = torch.cat([sums[:, :-2], sums[:, -2:].sum(dim=1, keepdim=True)], dim=1)
    count, confidence, right, _ = bins.unbind(-1)
    squared = REACH**2
    middle = (right + squared / 2) / (count + squared)
    half = REACH * (right * (1 - right / count) + squared / 4).sqrt() / (count + squared)
    return {
        "error": excess.abs().sum(dim=1) / samples,
        "brier": sums[..., 3].sum(dim=1) / samples,
        "overconfidence": excess.sum(dim=1) / samples,
        "gap": (confidence - right) / count,
        "low": confidence / count - middle - half,
        "high": confidence / count - middle + half,
    }


class LayerCalibration(ReadoutMetric):
    """The `calibration` of every layer over batches and processes."""

    sums: Tensor

    def __init__(self, num_layers: int) -> None:
        super().__init__(sums=torch.zeros(num_layers, BINS + 1, 4, dtype=torch.float64))

    def update(self, output: LayerOutput) -> None:
        readout = output.readout
        right = readout.predictions == targets_of(output)
        self.add(sums=calibration_sums(readout.confidences, right, readout.briers))

    def compute(self) -> dict[str, Tensor]:
        return calibration(self.sums)
