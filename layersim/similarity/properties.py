"""What a measure promises: what changes it and what does not, its cost. Letters: L layers, N samples,
D width."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Reach = Literal["own", "shared", "none"]
"""Which maps of the features leave the value as it is: each layer may have its own, all must share one, or none do."""


@dataclass(frozen=True)
class Properties:
    """Declared by every metric as `properties`; a test verifies what is declared and refutes what is not."""

    orthogonal: Reach
    """Rotations and reflections of the D components."""
    scaling: Reach
    """A positive factor for a whole layer."""
    linear: Reach
    """Any invertible linear map of the D components."""
    translation: Reach
    """A vector added to all samples of a layer."""
    permutation: bool
    """The samples in another order, the same in all layers."""
    flops: Callable[[int, int, int], float]
    """(L, N, D) → floating-point operations for L layers against themselves, leading terms."""
    bytes: Callable[[int, int, int], float]
    """(L, N, D) → bytes at the peak beyond float32 features, leading terms."""
    symmetric: bool = True
    """Whether layer l against m is m against l."""
    equal_widths: bool = False
    """Whether both layers must have the same D."""
