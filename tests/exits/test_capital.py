"""Capital by hand, and how often it ever reaches 1 / δ."""

from math import inf, sqrt

import pytest
import torch

from layersim.exits import capital
from layersim.exits.capital import FRACTIONS, HORIZON, Capital


def by_hand(targets: list[float], low: float, values: torch.Tensor) -> list[float]:
    """One sample after the other: every bet, then the money that waits."""
    stakes = [[fraction / (target - low) for fraction in FRACTIONS.tolist()] for target in targets]
    bets = [[0.5 / (len(targets) * len(FRACTIONS))] * len(FRACTIONS) for _ in targets]
    kept, found = 0.5, []
    for number, sample in enumerate(values.tolist(), start=1):
        rest = 0.5 / sqrt(1 + number / HORIZON)
        each = (kept - rest) / (len(targets) * len(FRACTIONS))
        bets = [
            [(money + each) * (1 + stake * (value - target)) for money, stake in zip(own, staked, strict=True)]
            for own, staked, value, target in zip(bets, stakes, sample, targets, strict=True)
        ]
        kept = rest
        found.append(kept + sum(map(sum, bets)))
    return found


@pytest.mark.parametrize(("targets", "low"), [([0.1], -1.0), ([0.1, 0.4], 0.0)])
def test_capital_by_hand_and_in_any_parts(targets: list[float], low: float) -> None:
    draw = torch.Generator().manual_seed(0)
    values = low + (1 - low) * torch.rand(60, len(targets), generator=draw, dtype=torch.float64)
    at_once = Capital(torch.tensor(targets, dtype=torch.float64), low)
    torch.testing.assert_close(at_once.update(values).exp().tolist(), by_hand(targets, low, values), rtol=1e-10, atol=0)
    in_parts = Capital(torch.tensor(targets, dtype=torch.float64), low)
    parts = torch.cat([in_parts.update(part) for part in values.split([1, 0, 7, 52])])
    torch.testing.assert_close(parts.exp().tolist(), by_hand(targets, low, values), rtol=1e-10, atol=0)
    assert in_parts.samples == 60
    torch.testing.assert_close(in_parts.bets, at_once.bets, rtol=1e-10, atol=0)


def ones(shape: tuple[int, ...], share: float, seed: int) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share).double()


def ever(share: float, samples: int, seed: int, target: float = 0.05) -> int | None:
    """When the capital against `target` reaches 20 on a stream of zeros and ones."""
    won = Capital(torch.tensor([target], dtype=torch.float64), 0.0).update(ones((samples, 1), share, seed))
    return int((won > torch.tensor(20.0).log()).int().argmax()) if won.max() > torch.tensor(20.0).log() else None


def test_a_mean_at_the_target_seldom_wins_and_a_greater_one_soon() -> None:
    """δ = 0.05, over 5000 samples; a binomial bound of three standard errors."""
    false = sum(ever(0.05, 5000, seed) is not None for seed in range(300))
    assert false / 300 <= 0.05 + 3 * sqrt(0.05 * 0.95 / 300)
    found = [ever(0.15, 500, seed) for seed in range(50)]
    assert None not in found
    assert sorted(found)[25] < 120  # type: ignore[type-var]


def test_a_bet_that_looks_for_ever_without_its_price_fails() -> None:
    """The control: a fixed-sample test at 5 %, repeated after every sample, rejects a true mean far oftener."""
    samples = torch.arange(1, 5001).double().unsqueeze(1)
    means = ones((5000, 300), 0.05, 1).cumsum(dim=0) / samples
    beyond = means > 0.05 + 1.645 * (0.05 * 0.95 / samples).sqrt()
    assert beyond[100:].any(dim=0).double().mean() > 0.2


def test_a_late_change_is_found_and_without_money_kept_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.cat([ones((4000, 1), 0.01, 2), ones((300, 1), 0.2, 3)])

    def delay() -> int:
        won = Capital(torch.tensor([0.05], dtype=torch.float64), 0.0).update(values) > torch.tensor(20.0).log()
        return int(won.int().argmax()) - 4000

    assert 0 < delay() < 120
    monkeypatch.setattr(capital, "HORIZON", inf)
    assert delay() < 0  # never


def test_the_state_goes_on() -> None:
    values = ones((100, 1), 0.2, 4)
    whole, half, rest = (Capital(torch.tensor([0.05], dtype=torch.float64), 0.0) for _ in range(3))
    whole.update(values)
    half.update(values[:40])
    rest.load_state_dict(half.state_dict())
    rest.update(values[40:])
    assert rest.samples == 100
    torch.testing.assert_close(rest.bets, whole.bets, rtol=1e-12, atol=0)
