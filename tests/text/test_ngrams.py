import math

import pytest

from layersim.text import distinct, diversity, repetition

# a b a b a | a b c: bigrams ab ba ab ba, ab bc; trigrams aba bab aba, abc; 4-grams abab baba, none
TEXTS = [[1, 2, 1, 2, 1], [1, 2, 3]]


@pytest.mark.parametrize(
    ("n", "of_all", "repeated"),
    [
        (1, 3 / 8, 1 - (2 + 3) / 8),
        (2, 3 / 6, 1 - (2 + 2) / 6),
        (3, 3 / 4, 1 - (2 + 1) / 4),
        (4, 2 / 2, 0),
    ],
)
def test_worked_by_hand(n: int, of_all: float, repeated: float) -> None:
    assert distinct(TEXTS, n) == pytest.approx(of_all, abs=1e-15)
    assert repetition(TEXTS, n) == pytest.approx(repeated, abs=1e-15)


def test_diversity_multiplies_what_is_not_repeated() -> None:
    assert diversity(TEXTS) == pytest.approx(4 / 6 * 3 / 4 * 1, abs=1e-15)


def test_ends_of_the_scales() -> None:
    fresh, stuck = [list(range(100))], [[7] * 100]
    assert (distinct(fresh, 2), repetition(fresh, 2), diversity(fresh)) == (1, 0, 1)
    assert distinct(stuck, 2) == pytest.approx(1 / 99, abs=1e-15)
    assert repetition(stuck, 2) == pytest.approx(98 / 99, abs=1e-15)
    assert diversity(stuck) == pytest.approx(1 / 99 / 98 / 97, abs=1e-15)


def test_texts_that_say_the_same_lower_distinct_but_repeat_nothing() -> None:
    alone, twice = [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5]] * 2
    assert distinct(twice, 2) == distinct(alone, 2) / 2 == 0.5
    assert repetition(twice, 2) == repetition(alone, 2) == 0
    assert diversity(twice) == diversity(alone) == 1


def test_no_ngram_spans_two_texts() -> None:
    assert distinct([[1, 2], [1, 2]], 2) == 0.5
    assert distinct([[1, 2, 1, 2]], 2) == pytest.approx(2 / 3, abs=1e-15), "control: one text has 2 1 as well"


def test_texts_that_are_too_short_have_no_share() -> None:
    assert all(math.isnan(value) for value in (distinct([[1]], 2), repetition([], 1), diversity([[1, 2, 3], []])))
    assert diversity([[1, 2, 3], [4, 5, 6, 7]]) == 1
