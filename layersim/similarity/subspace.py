"""The directions in which a layer's samples spread. Letters: N samples, D width, r rank."""

from dataclasses import dataclass

import torch
from torch import Tensor

from layersim.similarity.centering import centred
from layersim.similarity.features import TooFewSamples


@dataclass(frozen=True)
class Subspace:
    """A layer's centred features X ≈ `basis` @ `loadings`, largest variance first."""

    basis: Tensor
    """(N, r) orthonormal columns."""
    loadings: Tensor
    """(r, D) what each direction adds to the components: diag(singular values) Vᵀ."""

    @property
    def rank(self) -> int:
        """r."""
        return self.basis.shape[1]


def subspace(layer: Tensor, variance: float | None = None) -> Subspace | None:
    """The directions that (N, D) float64 features spread in, or the fewest that explain a share `variance` of it.

    A direction counts where its singular value is above max(N, D) · 2⁻⁵² times the largest: below is float64's own
    rounding (as numpy's matrix_rank). None where the features are constant.
    """
    basis, values, directions = torch.linalg.svd(centred(layer, dim=0), full_matrices=False)
    if values[0] == 0:
        return None
    if variance is None:
        rank = int((values > values[0] * max(layer.shape) * torch.finfo(layer.dtype).eps).sum())
    else:
        explained = values.square().cumsum(0)
        rank = 1 + int((explained < variance * explained[-1]).sum())
    return Subspace(basis[:, :rank], values[:rank, None] * directions[:rank])


def require_room(found: Subspace | None, measure: str) -> Subspace | None:
    """Hands the subspace on.

    Raises:
        TooFewSamples: it is all that N centred samples can span, so that it explains anything, whatever the data.
    """
    if found is not None and found.rank >= len(found.basis) - 1:
        raise TooFewSamples(
            f"{measure} needs at least {found.rank + 2} samples, and more where D is larger: got {len(found.basis)}, "
            f"which a layer of rank {found.rank} fits exactly, so that all values would be 1: measure on more samples "
            "(and raise max_samples if that is what limits them), or choose SVCCA, whose variance says how many "
            "directions it keeps, or linear CKA"
        )
    return found
