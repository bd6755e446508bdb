"""An epoch's updates never wait for the device: they run on tensors that have no values to wait for."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from layersim import precision
from layersim.similarity.samples import WholeMetric
from tests.similarity.every_measure import METRICS


def update(metric: Any, samples: int) -> None:
    for start in range(0, 4 * samples, samples):
        metric.update(torch.empty(12, samples, 16, device="meta"), torch.arange(start, start + samples))


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS.keys())
@pytest.mark.parametrize("samples", [80, 33])  # whole groups of minibatch CKA, and groups that wait for their rest
def test_updates_never_ask_for_a_value(
    make: Callable[..., WholeMetric], samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision.torch, "autocast", lambda *_, **__: nullcontext())  # there is none on meta
    update(make(), samples)


def test_asking_for_a_value_fails_there() -> None:
    class Curious:
        def update(self, features: torch.Tensor, index: torch.Tensor) -> None:
            features.sum().item()

    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        update(Curious(), 80)
