import numpy as np
import pytest

from layersim.errors import UserError
from layersim.transfer import linear_probe
from layersim.transfer.linear_probe import PENALTIES

RNG = np.random.default_rng(0)
MEANS = RNG.normal(size=(3, 8))
TARGETS, TEST_TARGETS = np.arange(300) % 3, np.arange(90) % 3
FEATURES = MEANS[TARGETS] + 0.05 * RNG.normal(size=(300, 8))
TEST_FEATURES = MEANS[TEST_TARGETS] + 0.05 * RNG.normal(size=(90, 8))


def test_classes_apart_are_read_off_and_noise_is_not() -> None:
    assert linear_probe(FEATURES, TARGETS, TEST_FEATURES, TEST_TARGETS).accuracy == 1
    noise, test_noise = RNG.normal(size=(300, 8)), RNG.normal(size=(90, 8))
    assert linear_probe(noise, TARGETS, test_noise, TEST_TARGETS).accuracy < 0.5


def test_neither_scale_nor_offset_nor_dead_features_matter() -> None:
    """1e-3 … 1e4 of each feature's scale, and one that is constant, leave every prediction where it was."""
    rough = FEATURES + RNG.normal(size=FEATURES.shape)
    scales, offsets = np.logspace(-3, 4, 8), RNG.normal(size=8)
    plain = linear_probe(rough, TARGETS, TEST_FEATURES, TEST_TARGETS)
    moved = (np.c_[values * scales + offsets, np.full(len(values), 7.0)] for values in (rough, TEST_FEATURES))
    first, second = moved
    assert linear_probe(first, TARGETS, second, TEST_TARGETS) == plain


def test_penalty_is_the_strongest_that_does_as_well() -> None:
    """Classes far apart stand any; those that a small difference of two alike features tells want large weights."""
    assert linear_probe(FEATURES, TARGETS, TEST_FEATURES, TEST_TARGETS).penalty == max(PENALTIES)
    sides = []
    for targets in (TARGETS, TEST_TARGETS):
        common = RNG.normal(size=len(targets))
        sides.append(np.c_[common, common + 0.05 * targets + 0.002 * RNG.normal(size=len(targets))])
    probe = linear_probe(sides[0], TARGETS, sides[1], TEST_TARGETS)
    assert probe.penalty == min(PENALTIES)
    assert probe.accuracy > 0.9


def test_refusals() -> None:
    with pytest.raises(UserError, match="two classes or more"):
        linear_probe(FEATURES, np.zeros(300, dtype=np.int64), TEST_FEATURES, TEST_TARGETS)
    with pytest.raises(UserError, match="needs finite features"):
        linear_probe(np.full_like(FEATURES, np.nan), TARGETS, TEST_FEATURES, TEST_TARGETS)
    with pytest.raises(UserError, match=r"cannot hold out .* Change --to_data"):
        linear_probe(FEATURES[:3], TARGETS[:3], TEST_FEATURES, TEST_TARGETS)
