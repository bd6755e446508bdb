"""How varied generated texts are, told by their n-grams. Texts are token ids; an n-gram lies within one text.

Shares are of sums over all texts, so that a long text counts for more than a short one. Where no text has n tokens
there is nothing to take a share of: NaN.
"""

from collections.abc import Iterable, Sequence
from math import nan, prod

Text = Sequence[int]


def distinct(texts: Iterable[Text], n: int) -> float:
    """distinct-n: the share of different n-grams among all n-grams of all texts together, 0 … 1 (arXiv 1510.03055).

    What two texts have in common lowers it, and so does a larger number of texts: compare equally many, equally long.
    """
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return _share(len(set(grams)), len(grams))


def repetition(texts: Iterable[Text], n: int) -> float:
    """rep-n: the share of n-grams that their own text has had before, 0 … 1 (arXiv 1908.04319, seq-rep-n)."""
    grams = [_ngrams(text, n) for text in texts]
    return 1 - _share(sum(len(set(own)) for own in grams), sum(map(len, grams)))


def diversity(texts: Sequence[Text]) -> float:
    """Π (1 − rep-n) over n = 2, 3, 4: 1 where no text repeats two tokens, 0 … 1 (arXiv 2202.06417)."""
    return prod(1 - repetition(texts, n) for n in (2, 3, 4))


def _ngrams(text: Text, n: int) -> list[tuple[int, ...]]:
    return list(zip(*(text[start:] for start in range(n)), strict=False))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else nan
