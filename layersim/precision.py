"""The precision that numbers are computed in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.backends import cuda, mkldnn

from layersim.errors import UserError

_PRODUCTS = (cuda.matmul, mkldnn.matmul)  # type: ignore[attr-defined]


def widened(values: Tensor) -> Tensor:
    """Half precision as float32, exactly; float32 and float64 as they are."""
    return values if values.dtype == torch.float64 else values.float()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within, float32 products are float32 products.

    Training recipes switch on TF32 or autocast; a similarity of 0.999 would then be known to two or three digits.
    """
    allowed = [products.fp32_precision for products in _PRODUCTS]
    for products in _PRODUCTS:
        products.fp32_precision = "ieee"
    # torch refuses to tell its older setting while the present ones contradict it
    older = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(older)
        for products, precision in zip(_PRODUCTS, allowed, strict=True):
            products.fp32_precision = precision


def refuse_mps(device: torch.device) -> None:
    """Raises a UserError for a device that has no float64."""
    if device.type == "mps":
        raise UserError("Apple's GPU has no float64, in which layersim sums: set --trainer.accelerator=cpu")
