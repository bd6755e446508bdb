"""Temperatures against closed forms and scipy."""

from math import log

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn.functional import cross_entropy

from layersim.errors import UserError
from layersim.exits import fit_temperatures, split_for_temperatures, temperature
from layersim.exits.temperature import GREATEST, LEAST
from layersim.heads import SeparateHeads
from layersim.outputs import LayerFeatures
from tests.tiny import backbone


def drawn(num_samples: int, num_classes: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets drawn from the softmax of logits, and those logits times `scale`: the true temperature."""
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(num_samples, num_classes, generator=draw)
    targets = torch.multinomial(logits.softmax(dim=-1), 1, generator=draw).squeeze(1)
    return logits * scale, targets


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The temperature with the least mean cross-entropy of (N, C) logits and (N,) targets."""
    return temperature._fit(lambda inverse: temperature._slope(logits, targets, inverse))


def test_two_classes_have_a_closed_form() -> None:
    """Logits ±z of which a share q is right: σ(z / T) = q where T = z / ln(q / (1 − q)), here with gaps of 3."""
    logits = torch.tensor([[3.0, 0.0]]).repeat(10, 1)
    targets = torch.tensor([0] * 8 + [1] * 2)
    assert fit_temperature(logits, targets) == pytest.approx(3 / log(0.8 / 0.2), rel=1e-9)


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0, 9.0])
def test_the_least_cross_entropy(scale: float) -> None:
    logits, targets = drawn(500, 7, scale)
    found = fit_temperature(logits, targets)
    reference = minimize_scalar(
        lambda inverse: cross_entropy(logits.double() * inverse, targets).item(),
        bounds=(1 / GREATEST, 1 / LEAST),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert found == pytest.approx(1 / reference.x, rel=1e-5)
    assert abs(temperature._slope(logits, targets, 1 / found)) < 1e-6


def test_the_true_temperature_is_found() -> None:
    assert fit_temperature(*drawn(20_000, 5, 2.5)) == pytest.approx(2.5, rel=0.03)


def test_bounds_where_there_is_no_minimum() -> None:
    right = torch.eye(4)[torch.arange(20) % 4]
    assert fit_temperature(right, torch.arange(20) % 4) == LEAST
    assert fit_temperature(right * 1e4, torch.arange(20) % 4) == LEAST
    assert fit_temperature(right, (torch.arange(20) + 1) % 4) == GREATEST
    assert fit_temperature(torch.zeros(20, 4), torch.arange(20) % 4) == GREATEST


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_refused(broken: float) -> None:
    logits, targets = drawn(50, 7, 1.0)
    logits[3, 2] = broken
    with pytest.raises(UserError, match="Expected finite logits"):
        fit_temperature(logits, targets)


def test_every_layer_has_its_own_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    head = SeparateHeads(backbone()).eval()
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(3, 300, 16, generator=draw)
    logits = [head.logits(values[layer : layer + 1], [layer])[0].detach() * 30 for layer in range(3)]
    for classifier in head.classifiers:
        classifier.weight.data *= 30
        classifier.bias.data *= 30
    targets = torch.multinomial((logits[1] / 3).softmax(dim=-1), 1, generator=draw).squeeze(1)
    features = LayerFeatures(values, targets)
    with pytest.warns(UserWarning, match=r"layer 1: 20"):
        found = fit_temperatures(head, features)
    assert found.tolist() == pytest.approx([fit_temperature(layer, targets) for layer in logits], rel=1e-5)
    monkeypatch.setattr(temperature, "MAX_LOGITS", 70 * 10)
    with pytest.warns(UserWarning, match="layer 1: 20"):
        chunked = fit_temperatures(head, features)
    torch.testing.assert_close(chunked, found, rtol=1e-8, atol=0)


def test_features_of_another_precision_than_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As autocast leaves them: read as the numbers that they are."""
    head = SeparateHeads(backbone()).eval()
    draw = torch.Generator().manual_seed(0)
    values, targets = torch.randn(3, 300, 16, generator=draw).bfloat16(), torch.randint(10, (300,), generator=draw)
    targets[:250] = head.logits(values.float(), range(3))[0, :250].argmax(dim=-1)
    for most in (temperature.MAX_LOGITS, 70 * 10):
        monkeypatch.setattr(temperature, "MAX_LOGITS", most)
        with pytest.warns(UserWarning, match="at or beyond its bounds"):
            found = fit_temperatures(head, LayerFeatures(values, targets))
        with pytest.warns(UserWarning, match="at or beyond its bounds"):
            expected = fit_temperatures(head, LayerFeatures(values.float(), targets))
        assert torch.equal(found, expected)


def test_without_targets_nothing_is_fitted() -> None:
    head = SeparateHeads(backbone())
    with pytest.raises(UserError, match="Expected samples with targets"):
        fit_temperatures(head, LayerFeatures(torch.zeros(3, 0, 16), torch.zeros(0, dtype=torch.int64)))


def test_a_split_of_its_own() -> None:
    first, second = split_for_temperatures(101, 0.2)
    assert len(first) == 20
    assert torch.cat([first, second]).sort().values.tolist() == list(range(101))
    assert torch.equal(split_for_temperatures(101, 0.2)[0], first)
    assert not torch.equal(split_for_temperatures(101, 0.2, seed=1)[0], first)


@pytest.mark.parametrize(("num_samples", "share"), [(100, 0.0), (100, 1.0), (100, -0.5), (3, 0.1), (100, float("nan"))])
def test_a_split_that_leaves_nothing_is_refused(num_samples: int, share: float) -> None:
    with pytest.raises(UserError, match="Expected a share between 0 and 1"):
        split_for_temperatures(num_samples, share)
