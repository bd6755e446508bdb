"""Promises for new data: kept with the true density ratio, broken without; the ratio by closed forms; its checks."""

from math import erf, exp, sqrt
from typing import Any

import pytest
import torch

from layersim.errors import UserError
from layersim.exits import Confidence, Method, Shift, calibrate, estimate_shift, exit_layer
from layersim.exits.promises import Expected
from layersim.exits.table import at_exits, drops
from tests.exits.readouts import THRESHOLDS, pool


def shift(weights: list[float], greatest: float = 4.0) -> Shift:
    return Shift(torch.tensor(weights, dtype=torch.float64), greatest)


def test_weighted_numbers_by_hand() -> None:
    losses = torch.tensor([1.0, 0.0, -1.0, 1.0], dtype=torch.float64)
    found = shift([4.0, 2.0, 1.0, 9.0]).weighted(losses, 0.2)
    assert found.tolist() == pytest.approx([1.0, 0.1, -0.1, 1.0])  # the last one counts as the greatest
    assert shift([1.0] * 4, 1.0).weighted(losses, 0.2).tolist() == pytest.approx(losses.tolist())
    assert shift([4.0, 2.0, 1.0, 1.0]).effective_samples == pytest.approx(64 / 22)


def test_a_ratio_above_the_greatest_counts_as_the_greatest_everywhere() -> None:
    high, cut = shift([1.0, 1.0, 1.0, 100.0], 1.0), shift([1.0] * 4, 1.0)
    assert high.effective_samples == pytest.approx(4)
    assert torch.equal(high.weights, cut.weights)
    assert high.summary() == cut.summary()


def test_ratios_of_float32_calibrate_as_those_of_float64() -> None:
    weights = ratios()[:1000].float()
    found = [
        calibrate(
            pool().select(torch.arange(1000)), Confidence(), THRESHOLDS, target=0.15, risk="disagreement",
            shift=Shift(each, weights.max().item()),
        )
        for each in (weights, weights.double())
    ]  # fmt: skip
    assert found[0] == found[1]
    assert found[0].threshold is not None


def test_it_is_weighted_conformal_risk_control() -> None:
    """(Σ w loss + W) / (Σ w + W) ≤ target, with W the greatest ratio in the new sample's place."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        weights, losses = 4 * torch.rand(2, 30, generator=draw, dtype=torch.float64)
        losses = losses / 4
        by_hand = (weights @ losses + 4) / (weights.sum() + 4)
        for target in (by_hand.item() - 1e-9, by_hand.item() + 1e-9):
            assert Expected(target, 0.1).keeps(Shift(weights, 4.0).weighted(losses, target)) == (target > by_hand)


def ratios() -> torch.Tensor:
    """(N,) of a world in which those of whom some layer is sure, but not very, come six times as often."""
    half_sure = ((pool().scores[:-1] > 0.6) & (pool().scores[:-1] < 0.85)).sum(dim=0) >= 2
    weights = torch.where(half_sure, 6.0, 1.0).double()
    return weights / weights.mean()


@pytest.mark.parametrize("method", ["ltt", "crc"])
def test_weights_keep_the_promise_in_the_new_world_and_without_them_it_is_broken(method: Method) -> None:
    """40 calibration sets of 1000 samples; the truth is the weighted mean over the pool."""
    target, delta, weights = 0.15, 0.1, ratios()
    costs = drops(pool(), "disagreement")
    real = {
        cut: ((weights @ at_exits(costs, exit_layer(pool().scores, cut))) / weights.sum()).item()
        for cut in (None, *THRESHOLDS)
    }

    def risks(weighted: bool) -> torch.Tensor:
        found = []
        for seed in range(40):
            rows = torch.randperm(len(weights), generator=torch.Generator().manual_seed(seed))[:1000]
            known = Shift(weights[rows], weights.max().item()) if weighted else None
            options = {"target": target, "risk": "disagreement", "confidence": 1 - delta, "method": method}
            one = calibrate(pool().select(rows), Confidence(), THRESHOLDS, shift=known, **options)  # type: ignore[arg-type]
            assert one.bound <= target + 1e-9
            found.append(real[one.threshold])
        return torch.tensor(found)

    kept, broken = risks(weighted=True), risks(weighted=False)
    if method == "crc":
        assert kept.mean() <= target + 3 * kept.std() / sqrt(40)
        assert broken.mean() > target + 3 * broken.std() / sqrt(40)
    else:
        assert (kept > target).double().mean() <= delta + 3 * sqrt(delta * (1 - delta) / 40)
        assert (broken > target).double().mean() > 0.9
    assert kept.mean() > target / 3  # not by never leaving


def gaussians(distance: float, samples: int = 3000, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    known, new = torch.randn(2, samples, width, generator=draw, dtype=torch.float64)
    new[:, 0] += distance
    return known, new


def test_the_ratio_of_two_gaussians() -> None:
    """w = exp(μ x − μ² / 2), of which N samples are worth N exp(−μ²); two draws are told apart with Φ(μ / √2)."""
    known, new = gaussians(1.0)
    found = estimate_shift(known, new)
    true = (known[:, 0] - 0.5).exp()
    assert found.weights.mean() == pytest.approx(1, abs=0.05)
    assert (found.weights.log() - true.log()).abs().mean() < 0.1
    assert found.effective_samples / 3000 == pytest.approx(exp(-1), abs=0.05)
    assert found.told_apart == pytest.approx((1 + erf(0.5)) / 2, abs=0.01)
    assert found.greatest >= found.weights.max()
    assert found.new_samples == 3000


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_and_kinds_of_features_change_nothing(unit: float) -> None:
    known, new = (each[:400] for each in gaussians(0.5))
    expected = estimate_shift(known, new)
    as_given: list[Any] = [known.float().numpy(), (known * unit).requires_grad_(), (known * unit).tolist()]
    for one, other in zip(as_given, [new.numpy(), new * unit, (new * unit).tolist()], strict=True):
        found = estimate_shift(one, other)
        assert found.told_apart == pytest.approx(expected.told_apart, abs=1e-3)
        torch.testing.assert_close(found.weights, expected.weights, rtol=1e-2, atol=1e-2)


def test_where_nothing_has_shifted_the_weights_are_even() -> None:
    known, new = gaussians(0.0)
    for other in (new, known):  # also where the new data are the calibration samples themselves
        found = estimate_shift(known, other)
        assert found.effective_samples > 2950
        assert found.told_apart == pytest.approx(0.5, abs=0.03)


def test_new_data_out_of_reach_are_refused() -> None:
    known, new = gaussians(8.0)
    with pytest.raises(
        UserError, match=r"A part of the new data lies where no calibration sample does.*area of 1\.000"
    ):
        estimate_shift(known, new)
    with pytest.raises(UserError, match="A part of the new data lies"):
        estimate_shift(known, torch.cat([known[:1000] + 1e-3, new[:1000]]))  # one half of them


@pytest.mark.parametrize(("old", "new"), [(0.0, 0.0), (0.0, 1.0)])
def test_data_that_are_all_the_same_are_refused(old: float, new: float) -> None:
    varied = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    constant = torch.full((20, 3), new)
    for known in (torch.full((20, 3), old), varied):
        with pytest.raises(UserError, match=r"Too few of the old or of the new data differ"):
            estimate_shift(known, constant)
    estimate_shift(varied, varied[:20])


def test_a_ratio_that_does_not_hold_is_told() -> None:
    """A mixture's log-ratio is not linear: far to the left it stays at ln ½."""
    known, new = gaussians(1.7)
    with pytest.warns(UserWarning, match="The density ratio is not what the new data ask for"):
        estimate_shift(known, torch.cat([gaussians(0.0)[1][:1500], new[1500:]]))


def test_too_much_weight_on_too_few_promises_nothing() -> None:
    table = pool().select(torch.arange(200))
    rare = torch.ones(200, dtype=torch.float64)
    with pytest.raises(UserError, match=r"too far from the 200 calibration samples .* for up to 50 of them"):
        calibrate(table, Confidence(), THRESHOLDS, target=0.05, shift=Shift(rare, 50.0))
    with pytest.raises(UserError, match="a density ratio for each of 200 samples, but got 3"):
        calibrate(table, Confidence(), THRESHOLDS, target=0.05, shift=shift([1.0] * 3))


@pytest.mark.parametrize("weights", [[], [-1.0], [float("nan")], [float("inf")], [0.0, 0.0]])
def test_ratios_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match=r"Expected (a finite density ratio|density ratios that reach above 0)"):
        shift(weights)


@pytest.mark.parametrize(("known", "new"), [((5, 2), (50, 2)), ((50, 2), (9, 2)), ((50, 2), (50, 3)), ((50,), (50,))])
def test_features_that_cannot_be_compared_are_refused(known: tuple[int, ...], new: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="Expected ten samples or more of old and new data"):
        estimate_shift(torch.zeros(known), torch.zeros(new))
    with pytest.raises(UserError, match="Expected finite features"):
        estimate_shift(torch.full((20, 2), float("nan")), torch.zeros(20, 2))
