"""What a measure promises: what changes it and what does not. Letter: D width."""

from dataclasses import dataclass
from typing import Literal

Reach = Literal["own", "shared", "none"]
"""Which maps of the features leave the value as it is: each layer may have its own, all must share one, or none do."""


@dataclass(frozen=True)
class Properties:
    """Declared by every metric as `properties`; a test verifies what is declared and refutes what is not."""

    orthogonal: Reach
    """Rotations and reflections of the D components."""
    scaling: Reach = "own"
    """A positive factor for a whole layer."""
    linear: Reach = "none"
    """Any invertible linear map of the D components."""
    translation: Reach = "none"
    """A vector added to all samples of a layer."""
    permutation: bool = True
    """The samples in another order, the same in all layers."""
    symmetric: bool = True
    """Whether layer l against m is m against l."""
    equal_widths: bool = False
    """Whether both layers must have the same D."""
