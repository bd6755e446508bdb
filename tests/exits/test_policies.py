"""Policies against cases worked by hand."""

from math import inf, log

import pytest
import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.exits import (
    POLICIES,
    Confidence,
    Entropy,
    Margin,
    Patience,
    Policy,
    Similarity,
    View,
    exit_layer,
    next_streak,
)

PROBABILITIES = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.9, 0.1], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
SURER_IN_THE_MIDDLE = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.5]])


def view(
    logits: Tensor | None = None,
    features: Tensor | None = None,
    previous: Tensor | None = None,
    streak: Tensor | None = None,
) -> View:
    rows = next(given for given in (logits, features, streak) if given is not None).shape[0]
    return View(
        torch.zeros(rows, 3) if logits is None else logits,
        torch.ones(rows, 2) if features is None else features,
        previous,
        torch.ones(rows, dtype=torch.int64) if streak is None else streak,
    )


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Confidence(), [0.5, 0.9, 1 / 3]),
        (Margin(), [0.2, 0.8, 0.0]),
        (
            Entropy(),
            [
                1 + (0.5 * log(0.5) + 0.3 * log(0.3) + 0.2 * log(0.2)) / log(3),
                1 + (0.9 * log(0.9) + 0.1 * log(0.1)) / log(3),
                0.0,
            ],
        ),
    ],
)
def test_scores_of_probabilities(policy: Policy, expected: list[float]) -> None:
    score = policy.score(view(logits=PROBABILITIES.log() + 7))  # a logit of −inf, and a shift that changes nothing
    torch.testing.assert_close(score, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_patience_counts_equal_predictions_in_a_row() -> None:
    predictions = torch.tensor([[1, 1, 1], [1, 2, 2], [1, 2, 1], [0, 2, 1]])  # one row a layer
    before, streak, streaks = None, None, []
    for layer in predictions:
        streak = next_streak(layer, before, streak)
        before = layer
        streaks.append(Patience().score(view(streak=streak)).tolist())
    assert streaks == [[1, 1, 1], [2, 1, 1], [3, 2, 1], [1, 3, 2]]
    assert exit_layer(torch.tensor(streaks), 2).tolist() == [1, 2, 3]


def test_similarity_is_the_plain_cosine() -> None:
    features = torch.tensor([[3.0, 4.0], [1.0, 0.0], [-2.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    previous = torch.tensor([[6.0, 8.0], [0.0, 5.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    score = Similarity().score(view(features=features, previous=previous))
    torch.testing.assert_close(score[:4], torch.tensor([1, 0, -1, 0.5**0.5]))
    assert score[4].isnan()
    assert not score[4] >= -1.0
    for scale in (1e-8, 1e8):
        scaled = Similarity().score(view(features=features * scale, previous=previous))
        torch.testing.assert_close(scaled, score, equal_nan=True)
    assert Similarity().score(view(features=features)).tolist() == [-inf] * 5
    assert Similarity().score(view(features=features.half(), previous=previous.half())).dtype == torch.float32


@pytest.mark.parametrize("policy", [kind() for kind in POLICIES.values()], ids=POLICIES)
def test_a_score_depends_on_its_own_sample_alone(policy: Policy) -> None:
    draw = torch.Generator().manual_seed(0)
    logits, features, previous = (torch.randn(37, width, generator=draw) for width in (11, 24, 24))
    streak = torch.randint(1, 5, (37,), generator=draw)
    together = policy.score(View(logits, features, previous, streak))
    for i in range(37):
        one = slice(i, i + 1)
        assert policy.score(View(logits[one], features[one], previous[one], streak[one])) == together[i]


def test_leaving_at_the_first_sure_layer() -> None:
    assert exit_layer(SURER_IN_THE_MIDDLE, 0.8).tolist() == [1, 0]  # reaching the threshold is enough
    assert exit_layer(SURER_IN_THE_MIDDLE, 0.85).tolist() == [2, 0]
    assert exit_layer(SURER_IN_THE_MIDDLE, 0.0).tolist() == [0, 0]
    assert exit_layer(SURER_IN_THE_MIDDLE, None).tolist() == [2, 2]
    assert exit_layer(torch.full((3, 2), float("nan")), 0.0).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("policy", "threshold", "told"),
    [
        (
            Confidence(),
            1.01,
            r"of 0\.1 … 1 for the policy confidence \(10 classes, 12 layers\), but got 1\.01",
        ),
        (Confidence(), 0.09, r"threshold of 0\.1 … 1"),
        (Margin(), -0.1, r"threshold of 0 … 1 .*margin"),
        (Entropy(), float("nan"), r"threshold of 0 … 1 .*but got nan"),
        (Patience(), 13, r"threshold of 1 … 12 .*patience"),
        (Patience(), 2.5, r"whole number of layers .*but got 2\.5"),
        (Similarity(), -1.5, r"threshold of -1 … 1 .*similarity"),
    ],
)
def test_thresholds_out_of_range_are_refused(policy: Policy, threshold: float, told: str) -> None:
    with pytest.raises(UserError, match=told):
        policy.check(threshold, num_classes=10, num_layers=12)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100, 1000])
@pytest.mark.parametrize("policy", [kind() for kind in POLICIES.values()], ids=POLICIES)
def test_the_thresholds_to_choose_from(policy: Policy, num_classes: int) -> None:
    thresholds = policy.thresholds(num_classes, num_layers=12)
    assert thresholds == sorted(set(thresholds))
    for threshold in thresholds:
        policy.check(threshold, num_classes, num_layers=12)
        assert torch.tensor(threshold).item() == threshold  # a float32
    undecided = view(logits=torch.zeros(1, num_classes), previous=-torch.ones(1, 2))
    assert (policy.score(undecided) >= thresholds[0]).all() or isinstance(policy, Entropy)
    if isinstance(policy, Patience):
        assert thresholds == list(range(1, 13))
    else:
        assert thresholds[-1] == 1
        assert 900 < len(thresholds) <= 1000


def test_bounds_do_not_depend_on_the_default_dtype() -> None:
    expected = [Confidence().bounds(classes, 3) for classes in (3, 258)]
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert [Confidence().bounds(classes, 3) for classes in (3, 258)] == expected
    finally:
        torch.set_default_dtype(torch.float32)
