"""Layer weights that are learned."""

import torch
from torch import Tensor, nn

from layersim.objectives.base import Objective
from layersim.objectives.reading import Reading


class UncertaintyWeighted(Objective):
    """Σ exp(−sl) CEl + sl / 2 with learned sl = ln σl², which start at 0: each layer weighs as much as it is sure
    (Kendall et al. 2018, arXiv 1705.07115, for classification).

    Where the losses stand still, sl tends to ln 2 CEl, so that a layer's weight is 1 / (2 CEl). The weights need not
    sum to one; evaluation reports the same sum, which may be negative.
    """

    def build(self, num_layers: int) -> None:
        self.log_variances = nn.Parameter(torch.zeros(num_layers))

    def forward(self, read: Reading) -> Tensor:
        return read.loss(torch.exp(-self.log_variances)) + self.log_variances.sum() / 2
