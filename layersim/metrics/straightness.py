"""How straight a sample's path through the layers is: the geodesic assumption as numbers.

The assumption (Jiang et al. 2025, arXiv 2406.14479): features lie on the segment from the first to the last. The paper
starts at the embeddings h_0; features are what blocks put out, so that the path here runs from h_1 to h_L.
Letters: L layers, N samples, D width.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.similarity.directions import angle_of
from layersim.similarity.features import as_features


@dataclass(frozen=True)
class Straightness:
    """All float64, a column a sample; NaN where a length of zero leaves nothing to divide by or to point anywhere."""

    path_over_chord: Tensor
    """(N,) Σ ‖h_{l+1} − h_l‖ ÷ ‖h_L − h_1‖: 1 on a straight way without a turn, else more."""
    angles: Tensor
    """(L − 2, N) degrees, 0 … 180, between the step to a layer and the step from it, for layers 2 … L − 1."""
    distances: Tensor
    """(L, N) distance of h_l to the segment from h_1 to h_L ÷ the chord's length; 0 for the first and the last."""
    skip_over_residual: Tensor
    """(L − 1, N) ‖h_l‖ ÷ ‖h_{l+1} − h_l‖: what the skip connection carries to the next layer ÷ what its block adds;
    infinite where a block adds nothing."""


def straightness(features: Tensor) -> Straightness:
    """How straight the path of each sample's (L, N, D) features is; of these as they are, not centred.

    No number changes with an orthogonal map or a positive scale that all layers share. A translation they share changes
    `skip_over_residual` alone.

    Raises:
        UserError: not (L, N, D) with L ≥ 2.
    """
    if len(features := as_features(features)) < 2:
        raise UserError("A path through the layers needs two of them or more, but got one.")
    first, chord = features[0].double(), features[-1].double() - features[0].double()
    squared = chord.square().sum(dim=1, keepdim=True)
    squared = squared.masked_fill(squared == 0, torch.nan)  # of no chord nothing is a multiple
    across = squared[:, 0].sqrt()
    length = torch.zeros_like(across)
    distances = [length / across]
    angles, ratios = [], []
    before: Tensor | None = None
    for layer, following in pairwise(layer.double() for layer in features):
        step = following - layer
        norm = torch.linalg.vector_norm(step, dim=1)
        length = length + norm
        ratios.append(torch.linalg.vector_norm(layer, dim=1) / norm)
        direction = step / norm[:, None]
        if before is not None:
            apart, together = (torch.linalg.vector_norm(v, dim=1) for v in (direction - before, direction + before))
            angles.append(180 * angle_of(apart, together))
        before = direction
        gone = following - first
        nearest = ((gone * chord).sum(dim=1, keepdim=True) / squared).clamp(0, 1)  # a segment ends, a line does not
        distances.append(torch.linalg.vector_norm(gone - nearest * chord, dim=1) / across)
    return Straightness(
        path_over_chord=length / across,
        angles=torch.stack(angles) if angles else length.new_empty(0, len(length)),
        distances=torch.stack(distances),
        skip_over_residual=torch.stack(ratios),
    )
