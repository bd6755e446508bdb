from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from layersim.errors import UserError
from layersim.transfer import fit_probe
from layersim.transfer.linear_probe import PENALTIES, _fitted, standardisation

RNG = np.random.default_rng(0)
MEANS = RNG.normal(size=(3, 8))
TARGETS, TEST_TARGETS = np.arange(300) % 3, np.arange(90) % 3
FEATURES = MEANS[TARGETS] + 0.05 * RNG.normal(size=(300, 8))
TEST_FEATURES = MEANS[TEST_TARGETS] + 0.05 * RNG.normal(size=(90, 8))


def probed(features: Any, targets: Any, others: Any, other_targets: Any) -> tuple[float, float]:
    """Accuracy on other samples, and penalty."""
    probe = fit_probe(features, targets)
    return probe.accuracy(others, other_targets), probe.penalty


def test_classes_apart_are_read_off_and_noise_is_not() -> None:
    assert probed(FEATURES, TARGETS, TEST_FEATURES, TEST_TARGETS)[0] == 1
    noise, test_noise = RNG.normal(size=(300, 8)), RNG.normal(size=(90, 8))
    assert probed(noise, TARGETS, test_noise, TEST_TARGETS)[0] < 0.5


def test_neither_scale_nor_offset_nor_dead_features_matter() -> None:
    """1e-3 … 1e4 of each feature's scale, and one that is constant, leave every prediction where it was."""
    rough = FEATURES + RNG.normal(size=FEATURES.shape)
    scales, offsets = np.logspace(-3, 4, 8), RNG.normal(size=8)
    plain = probed(rough, TARGETS, TEST_FEATURES, TEST_TARGETS)
    moved = (np.c_[values * scales + offsets, np.full(len(values), 7.0)] for values in (rough, TEST_FEATURES))
    first, second = moved
    assert probed(first, TARGETS, second, TEST_TARGETS) == plain


def test_what_is_exactly_constant_has_no_weight() -> None:
    """0.1 too, whose mean is rounded so that its spread is not 0; what varies however little has a factor."""
    features = np.c_[FEATURES, np.full(300, 0.1)]
    assert 0 < features[:, -1].std() < 1e-15
    _, factor = standardisation(features)
    np.testing.assert_allclose(factor[0] * features.std(axis=0), [1] * 8 + [0], rtol=1e-12)
    probe, plain = fit_probe(features, TARGETS), fit_probe(FEATURES, TARGETS)
    assert (probe.weight[:, -1] == 0).all()
    np.testing.assert_allclose(probe.weight[:, :-1], plain.weight, rtol=1e-6)
    almost = features.copy()
    almost[0, -1] += 1e-9
    assert standardisation(almost)[1][0, -1] > 0


def test_penalty_is_that_of_least_loss_and_so_on_other_samples() -> None:
    """Of noise the strongest. Of classes that touch, among sixty features of noise, the weakest would be much too sure.
    Classes that a small difference of two alike features tells want large weights."""
    noise = [RNG.normal(size=(len(one), 60)) for one in (TARGETS, TEST_TARGETS)]
    assert probed(noise[0], TARGETS, noise[1], TEST_TARGETS)[1] == max(PENALTIES)
    fitted, others = (
        np.c_[MEANS[one] + RNG.normal(size=(len(one), 8)), nothing]
        for one, nothing in zip((TARGETS, TEST_TARGETS), noise, strict=True)
    )
    losses = {penalty: _fitted(fitted, TARGETS, penalty).loss(others, TEST_TARGETS) for penalty in PENALTIES}
    assert losses[fit_probe(fitted, TARGETS).penalty] == min(losses.values())
    assert losses[min(PENALTIES)] > 2 * min(losses.values())
    sides = []
    for targets in (TARGETS, TEST_TARGETS):
        common = RNG.normal(size=len(targets))
        sides.append(np.c_[common, common + 0.05 * targets + 0.002 * RNG.normal(size=len(targets))])
    accuracy, penalty = probed(sides[0], TARGETS, sides[1], TEST_TARGETS)
    assert penalty == min(PENALTIES)
    assert accuracy > 0.9


def test_two_classes_are_told_apart_as_scikit_learn_does() -> None:
    """Probabilities, and weights of features as they are."""
    targets, features = TARGETS % 2, FEATURES * np.logspace(-2, 2, 8) + 3
    probe = fit_probe(features, targets)
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    model = LogisticRegression(C=1 / probe.penalty, max_iter=5000).fit(scaled, targets)
    logits = features @ probe.weight.T + probe.bias
    expected = model.predict_log_proba(scaled)
    np.testing.assert_allclose(logits - np.logaddexp.reduce(logits, axis=1)[:, None], expected, atol=1e-9)
    assert probe.loss(features, targets) == pytest.approx(log_loss(targets, model.predict_proba(scaled)), abs=1e-9)
    named = replace(probe, classes=np.array([3, 8]))
    assert named.loss(features, 5 * targets + 3) == probe.loss(features, targets), "classes have numbers of their own"


def test_tensors_and_lists_are_read_as_arrays_in_float64() -> None:
    expected = fit_probe(FEATURES.astype(np.float32).astype(np.float64), TARGETS)
    narrow = torch.from_numpy(FEATURES).float()
    for features, targets in ((narrow, torch.from_numpy(TARGETS)), (narrow.tolist(), TARGETS.tolist())):
        found = fit_probe(features, targets)
        assert np.array_equal(found.weight, expected.weight)
        assert found.penalty == expected.penalty


def test_refusals() -> None:
    with pytest.raises(UserError, match="two classes or more"):
        fit_probe(FEATURES, np.zeros(300, dtype=np.int64))
    with pytest.raises(UserError, match="needs finite features"):
        fit_probe(np.full_like(FEATURES, np.nan), TARGETS)
    with pytest.raises(UserError, match=r"cannot hold out .* Change --to_data"):
        fit_probe(FEATURES[:3], TARGETS[:3])


def test_features_of_half_precision_and_with_a_gradient_are_read() -> None:
    coarse = torch.tensor(FEATURES).bfloat16()
    expected = fit_probe(coarse.double().numpy(), TARGETS)
    found = fit_probe(coarse.requires_grad_(), torch.tensor(TARGETS))
    assert found.accuracy(TEST_FEATURES, TEST_TARGETS) == expected.accuracy(TEST_FEATURES, TEST_TARGETS)
    assert found.penalty == expected.penalty
