"""The alarm: silent where nothing changes, however long; soon where something does; and what it is told wrongly."""

import json
import re
import warnings
from functools import cache
from math import inf, nan, sqrt

import pytest
import torch
from scipy.stats import beta

from layersim.errors import UserError
from layersim.exits import Alarm, Confidence, Entropy, ExitTable, Patience, Policy, Reference, Similarity, exit_layer
from layersim.exits.reference import doubts, reference_of
from layersim.exits.table import at_exits
from tests.exits.readouts import pool

C = 10
SEEN = 0.8
"""A threshold at which the pool's samples leave at all layers."""


def small(samples: int = 400, seed: int = 0) -> ExitTable:
    order = torch.randperm(len(pool().targets), generator=torch.Generator().manual_seed(seed))
    return pool().select(order[:samples])


def told(table: ExitTable, threshold: float = SEEN) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) doubts at the first layer and depths, by their definitions."""
    doubt = ((1 - table.scores.double()) / (1 - Confidence().bounds(C, 6)[0])).round(decimals=4)
    exits = exit_layer(table.scores, threshold)
    return doubt[0], exits + at_exits(doubt, exits)


@cache
def everyone() -> tuple[torch.Tensor, torch.Tensor]:
    return told(pool())


def reference(samples: int = 400, seed: int = 0) -> Reference:
    return reference_of(small(samples, seed), Confidence(), SEEN, C)


@pytest.mark.parametrize(
    ("policy", "scores", "expected"),
    [
        (Confidence(), [0.1, 0.55, 1.0, nan], [1, 0.5, 0, 1]),
        (Entropy(), [0.0, 0.25, 1.0, 0.99999], [1, 0.75, 0, 0]),
        (Patience(), [1.0, 2.0, 3.0], [1, 0.5, 0]),
        (Similarity(), [-inf, -1.0, 0.0, 1.0], [1, 1, 0.5, 0]),
    ],
)
def test_doubt_runs_from_the_surest_score_to_the_least(
    policy: Policy, scores: list[float], expected: list[float]
) -> None:
    assert doubts(policy, torch.tensor(scores), 10, 3).tolist() == pytest.approx(expected, abs=1e-9)


def test_a_reference_is_order_statistics() -> None:
    found = reference()
    assert found.samples == 400
    assert found.ranks == [8, 40, 120, 280, 360, 392]
    doubt, depth = (each.sort().values for each in told(small()))
    assert found.doubt == doubt[[rank - 1 for rank in found.ranks]].tolist()
    assert found.depth == depth[[rank - 1 for rank in found.ranks]].tolist()


def test_its_shares_are_tolerance_limits() -> None:
    """Wilks: the share below the k-th of n is Beta(k, n + 1 − k); and by simulation all bounds hold at once."""
    found, delta = reference(), 0.1
    shares = found.shares(delta)
    assert len(shares) == 24
    assert shares[0].item() == pytest.approx(beta.ppf(1 - delta / 24, 8, 393), rel=1e-9)
    assert shares[12].item() == pytest.approx(beta.ppf(1 - delta / 24, 393, 8), rel=1e-9)
    truth = torch.stack(everyone())
    broken = naive = 0
    for seed in range(200):
        one = reference(seed=seed)
        real = one.beyond(truth).mean(dim=0)
        broken += bool((real > one.shares(delta)).any())
        counts = one.beyond(torch.stack(told(small(seed=seed)))).mean(dim=0)
        naive += bool((real > counts).any())
    assert broken / 200 <= delta + 3 * sqrt(delta * (1 - delta) / 200)
    assert naive == 200  # the mere counts are always exceeded somewhere


def sounded(watch: Alarm, doubt: torch.Tensor, depth: torch.Tensor) -> int | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watch.observe(doubt, depth)
    return watch.sounded_at


def stream(samples: int, seed: int) -> torch.Tensor:
    return torch.randint(len(pool().targets), (samples,), generator=torch.Generator().manual_seed(1000 + seed))


def test_an_alarm_on_confidences_is_silent_for_ever_and_one_on_mere_counts_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """60 calibrations and 2000 samples each, δ = 0.1: false alarms within a binomial bound. The control takes the
    reference's own counts for the truth."""
    doubt, depth = everyone()

    def false() -> float:
        watches = [(Alarm(reference=reference(seed=seed), confidence=0.9), stream(2000, seed)) for seed in range(60)]
        return sum(sounded(watch, doubt[rows], depth[rows]) is not None for watch, rows in watches) / 60

    assert false() <= 0.1 + 3 * sqrt(0.1 * 0.9 / 60)

    def counts(self: Reference, delta: float) -> torch.Tensor:
        ranks = torch.tensor(self.ranks, dtype=torch.float64) / self.samples
        return torch.cat([ranks, ranks, 1 - ranks, 1 - ranks])

    monkeypatch.setattr(Reference, "shares", counts)
    assert false() > 0.3


def test_a_change_is_heard_soon_after_it_came() -> None:
    """From sample 2000 on every second sample stems from the surest or the most doubtful fifth."""
    doubt, depth = everyone()
    order = depth.argsort()
    for changed in (order[: len(order) // 5], order[-len(order) // 5 :]):
        delays = []
        for seed in range(20):
            rows = stream(2500, seed)
            rows[2000::2] = changed[rows[2000::2] % len(changed)]
            delays.append(sounded(Alarm(reference=reference(1000, seed)), doubt[rows], depth[rows]))
        assert all(at is not None and 2000 < at <= 2500 for at in delays)


def test_labels_are_tested_and_both_share_the_probability() -> None:
    watch = Alarm(target=0.1, risk="disagreement")
    draw = torch.Generator().manual_seed(0)
    watch.report((torch.rand(3000, generator=draw) < 0.05).double())
    assert watch.describe() == "The alarm is silent after 3000 labels."
    with pytest.warns(
        UserWarning, match=r"sounded at sample 3\d\d\d, by its labels: the share of samples predicted.*0.1"
    ):
        watch.report((torch.rand(500, generator=draw) < 0.4).double())
    assert watch.sounded_by == "labels"
    assert Alarm(target=0.1).delta == pytest.approx(0.05)
    both = Alarm(target=0.1, reference=reference())
    assert both.delta == pytest.approx(0.025)
    assert both.capitals["confidences"].targets.tolist() == reference().shares(0.0125).tolist()
    assert [both.delta_of(kind) for kind in ("labels", "confidences")] == pytest.approx([0.025, 0.0125])


def test_it_sounds_once_at_the_very_sample_and_starts_anew_when_reset() -> None:
    watch = Alarm(target=0.1, risk="disagreement", stream=5)
    bad = torch.ones(watch.least_samples)
    watch.report(bad[:-1])
    assert watch.sounded_at is None
    with pytest.warns(UserWarning, match="All samples go through all layers from here on"):
        watch.report(torch.ones(40))
    assert watch.sounded_at == watch.least_samples
    watch.report(torch.ones(40))  # no second warning, which would be an error here
    watch.reset()
    assert (watch.sounded_at, watch.sounded_by) == (None, None)
    watch.report(bad[:-1])
    least = watch.least_samples
    assert watch.describe() == (
        f"The alarm is silent after {least - 1} labels; it could not have sounded before {least} samples."
    )


def test_a_service_goes_on_after_a_restart() -> None:
    doubt, depth = everyone()
    rows = torch.cat([stream(300, 0), depth.argsort()[-400:]])
    whole, before, after = (Alarm(target=0.1, reference=reference()) for _ in range(3))
    at = sounded(whole, doubt[rows], depth[rows])
    assert sounded(before, doubt[rows[:310]], depth[rows[:310]]) is None
    state = json.loads(json.dumps(before.state_dict()))
    after.load_state_dict(state)
    assert sounded(after, doubt[rows[310:]], depth[rows[310:]]) == at
    again = Alarm(target=0.1, reference=reference())
    again.load_state_dict(after.state_dict())
    assert (again.sounded_at, again.sounded_by) == (at, "confidences")
    for other in (Alarm(target=0.2, reference=reference()), Alarm(target=0.1), Alarm(reference=reference())):
        with pytest.raises(UserError, match="Expected the state of an alarm that tests"):
            other.load_state_dict(state)
    with pytest.raises(UserError, match="but got None"):
        whole.load_state_dict({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Expected something to watch"),
        ({"target": 1.5}, "a risk target above 0 and below 1, but got 1.5"),
        ({"target": nan}, "a risk target above 0 and below 1, but got nan"),
        ({"target": 0.1, "confidence": 1.0}, "a confidence above 0 and below 1, but got 1"),
        ({"target": 0.1, "risk": "harm"}, "risk: expected one of error, disagreement, loss, got 'harm'"),
        ({"target": 0.5, "stream": 3}, r"needs \d+ samples at least, but the stream ends after 3"),
        ({"reference": "tiny"}, "on 3 calibration samples could not sound within 16384"),
    ],
)
def test_alarms_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    if "reference" in options:
        options = {"reference": Reference(3, [1, 2, 3], [0.0, 0.5, 1.0], [0.0, 1.0, 2.0]), "confidence": 1 - 1e-12}
    with pytest.raises(UserError, match=message):
        Alarm(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "losses", [torch.tensor([nan]), torch.tensor([-0.5]), torch.tensor([2.0]), torch.ones(2, 2), torch.tensor(1.0)]
)
def test_losses_that_are_none_are_refused(losses: torch.Tensor) -> None:
    watch = Alarm(target=0.1, risk="disagreement")
    with pytest.raises(UserError, match=re.escape("Expected one loss in 0 … 1 for each sample (disagreement)")):
        watch.report(losses)
    assert watch.capitals["labels"].samples == 0
    with pytest.raises(UserError, match="watches no labels"):
        Alarm(reference=reference()).report(torch.ones(1))
    watch.report(torch.ones(0))


@pytest.mark.parametrize(
    "changes", [{"ranks": [2, 1]}, {"ranks": [0, 1]}, {"ranks": [1, 11]}, {"doubt": [0.0]}, {"depth": [0.0, nan]}]
)
def test_references_that_are_none_are_refused(changes: dict[str, list[float]]) -> None:
    given = {"samples": 10, "ranks": [1, 9], "doubt": [0.0, 1.0], "depth": [0.5, 5.5]}
    Reference(**given)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Expected rising ranks"):
        Reference(**given | changes)  # type: ignore[arg-type]
