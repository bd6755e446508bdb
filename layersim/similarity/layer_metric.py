"""Metrics that keep the shape of what they compute."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from lightning_utilities import apply_to_collection
from torch import Tensor
from torchmetrics import Metric


class _Held:
    """A value that torchmetrics hands on without looking inside."""

    def __init__(self, value: Any) -> None:
        self.value = value


class LayerMetric(Metric):
    """A torchmetrics metric whose `compute` gives (L,) and (L, M) also where they hold one number.

    torchmetrics squeezes such tensors to scalars, and a model of one layer would have no layers.
    """

    def _wrap_compute(self, compute: Callable[[], Any]) -> Callable[[], Any]:
        @wraps(compute)
        def held() -> _Held:
            return _Held(apply_to_collection(compute(), Tensor, torch.clone))  # a state may change later

        cached = super()._wrap_compute(held)
        return wraps(compute)(lambda: cached().value)
