"""The precision that numbers are computed in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def widened(values: Tensor) -> Tensor:
    """Half precision as float32, exactly; float32 and float64 as they are."""
    return values if values.dtype == torch.float64 else values.float()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within, float32 products are float32 products.

    Training recipes switch on TF32 or autocast; a similarity of 0.999 would then be known to two or three digits.
    """
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(allowed)
