"""Linear CKA of all samples by sums: the function's value, at bytes that do not grow."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from layersim import precision
from layersim.errors import UserError
from layersim.similarity import StreamedCKA, linear_cka, streamed_cka
from layersim.similarity.streamed_cka import Moments, bytes_of
from tests.similarity.references import related_layers


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples wait, so that a few hundred are many stretches."""
    monkeypatch.setattr(streamed_cka, "STRETCH", 64)


def exact(features: Tensor, estimator: str) -> Tensor:
    """Song et al. 2012, eq. 5, or Gretton et al. 2005, from whole Gram matrices in float64."""
    features = features.double() - features.double().mean(1, keepdim=True)
    grams, samples = features @ features.mT, features.shape[1]
    if estimator == "debiased":
        grams = grams - torch.diag_embed(grams.diagonal(dim1=1, dim2=2))
    flat, rows, every = grams.flatten(1), grams.sum(2), grams.sum((1, 2))
    hsic = flat @ flat.mT
    if estimator == "debiased":
        hsic = hsic + every.outer(every) / ((samples - 1) * (samples - 2)) - 2 / (samples - 2) * rows @ rows.mT
    return hsic / hsic.diagonal().outer(hsic.diagonal()).sqrt()


def drifting(samples: int, spreads: float) -> Tensor:
    """Layers whose mean lies so many spreads off, and moves by six while the samples come."""
    features = related_layers(samples, 12).double()
    spread = features.std((1, 2), keepdim=True)
    way = torch.linspace(-3, 3, samples, dtype=torch.float64)[None, :, None]
    return (features + spread * (spreads + way)).float()


def streamed(features: Tensor, order: Tensor, batch: int, **options: Any) -> StreamedCKA:
    metric = StreamedCKA(**options)
    for index in order.split(batch):
        metric.update(features[:, index], index)
    return metric


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("spreads", [0, 50])
@pytest.mark.parametrize("batch", [1, 50, 64, 700])
def test_equals_the_definition_on_all_samples(estimator: Any, spreads: float, batch: int) -> None:
    features = drifting(700, spreads)
    expected = exact(features, estimator)
    shuffled = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    for order in (torch.arange(700), shuffled):
        metric = streamed(features, order, batch, estimator=estimator)
        torch.testing.assert_close(metric.compute(), expected, rtol=0, atol=1e-6)
    first = exact(features[:, :64], estimator)
    assert (first - expected).abs().max() > 0.01, "the control: fewer samples are another value"


@pytest.mark.usefixtures("short")
def test_float64_keeps_its_digits() -> None:
    features = drifting(300, 50).double()
    metric = streamed(features, torch.arange(300), 40)
    torch.testing.assert_close(metric.compute(), exact(features, "debiased"), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("short")
def test_goes_on_after_a_value() -> None:
    features = drifting(300, 5)
    metric = streamed(features, torch.arange(100), 30)
    assert torch.equal(metric.compute(), metric.compute())
    for index in torch.arange(100, 300).split(30):
        metric.update(features[:, index], index)
    torch.testing.assert_close(metric.compute(), exact(features, "debiased"), rtol=0, atol=1e-6)
    metric.reset()
    metric.update(features[:, :50], torch.arange(50))
    torch.testing.assert_close(metric.compute(), exact(features[:, :50], "debiased"), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("short")
def test_samples_of_inference_mode_are_measured_outside_of_it() -> None:
    features, metric = drifting(300, 0), StreamedCKA()
    for index in torch.arange(300).split(40):
        with torch.inference_mode(bool(index[0] < 160)):
            metric.update(features[:, index].clone(), index)
    torch.testing.assert_close(metric.compute(), linear_cka(features, estimator="debiased"), rtol=0, atol=1e-6)
    torch.testing.assert_close(metric.compute(), exact(features, "debiased"), rtol=0, atol=1e-6)


def test_moments_about_another_origin_are_those_of_the_samples() -> None:
    features, origin = torch.randn(3, 40, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    moved, expected = Moments.about(torch.zeros(3, 5)), Moments.about(origin.clone())
    moved.add(features), expected.add(features)
    moved.move(origin)
    for ours, theirs in zip(moved.sums(), expected.sums(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("short")
def test_bytes_do_not_grow() -> None:
    features, held = torch.randn(4, 640, 12), []
    metric = StreamedCKA()
    for start in range(0, 6400, 640):
        metric.update(features, torch.arange(start, start + 640))
        states = [*metric.moments, *metric.origin, *metric.features, *metric.others]
        held.append(sum(state.untyped_storage().nbytes() for state in states))
    assert len(set(held)) == 1
    assert held[0] <= bytes_of(4, 12)


def test_never_asks_for_a_value(monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    monkeypatch.setattr(precision.torch, "autocast", lambda *_, **__: nullcontext())  # there is none on meta
    metric = StreamedCKA()
    for start in range(0, 300, 100):
        metric.update(torch.empty(3, 100, 8, device="meta"), torch.arange(start, start + 100))
    assert metric.moments


def test_a_constant_layer_is_nan() -> None:
    features = related_layers(80, 12).float()
    features[1] = 0.1
    metric = streamed(features, torch.arange(80), 30)
    with pytest.warns(UserWarning, match="NaN for layer 2 "):
        assert metric.compute().isnan().sum() == 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: StreamedCKA(max_bytes=10**5).update(x), "max_bytes: expected at least .* 4 layers of width 12"),
        (lambda x: StreamedCKA().update(x, other=x), "compares the layers of one model"),
        (lambda x: StreamedCKA(estimator="minibatch"), "estimator: expected"),  # type: ignore[arg-type]
        (lambda x: streamed(x, torch.arange(3), 3).compute(), "needs at least 4 samples, got 3"),
        (lambda x: streamed(x, torch.arange(40), 40).interval(), "choose LinearCKA"),
        (lambda x: streamed(x, torch.arange(40) // 2, 7).compute(), "position 0 came more than once"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(related_layers(40, 12))


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_no_scale_is_too_large_or_too_small_for_float32(estimator: Any, scale: float) -> None:
    """Nor are layers of opposite ones."""
    features = related_layers(200, 6)
    scales = torch.full((len(features), 1, 1), scale)
    scales[0] = 1 / scale
    metric = StreamedCKA(estimator=estimator)
    metric.update(features * scales)
    torch.testing.assert_close(metric.compute(), exact(features, estimator), rtol=0, atol=2e-6)
