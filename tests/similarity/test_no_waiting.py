"""An epoch's updates never ask the device for a value: they run on tensors that have none; nor wait for a GPU."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch

from layersim import precision
from layersim.similarity import RSA
from layersim.similarity.measure import Measure
from tests.similarity.every_measure import METRICS

MADE = METRICS | {"rsa capped": partial(RSA, max_samples=40)}
each_metric = pytest.mark.parametrize("make", MADE.values(), ids=MADE.keys())
each_size = pytest.mark.parametrize("samples", [80, 33])  # whole groups of minibatch CKA, and groups that wait


def update(metric: Any, samples: int, device: str = "meta") -> None:
    features = torch.empty(12, samples, 16, device=device)
    for start in range(0, 4 * samples, samples):
        metric.update(features, torch.arange(start, start + samples))


@each_metric
@each_size
def test_updates_never_ask_for_a_value(
    make: Callable[..., Measure], samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision.torch, "autocast", lambda *_, **__: nullcontext())  # there is none on meta
    update(make(), samples)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_metric
@each_size
def test_updates_never_wait_for_a_gpu(make: Callable[..., Measure], samples: int) -> None:
    metric = make()
    update(metric, samples, "cuda")  # what is made at the first use may wait
    metric.reset()
    torch.cuda.set_sync_debug_mode("error")
    try:
        update(metric, samples, "cuda")
        with pytest.raises(RuntimeError, match="synchronizing"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_asking_for_a_value_fails_there() -> None:
    class Curious:
        def update(self, features: torch.Tensor, index: torch.Tensor) -> None:
            features.sum().item()

    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        update(Curious(), 80)
