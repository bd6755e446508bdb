"""Draws that depend on nothing but names and a seed: the same in every run, on every machine."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from layersim.data.splits import Integers


def digest(*parts: object) -> int:
    """64 bits of a hash of these parts, by their text."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big")


def deal(names: Sequence[str], *, val_fraction: float, test_fraction: float, seed: int) -> dict[str, Integers]:
    """Positions of the names in "train", "val" and, unless its fraction is 0, "test"; each in ascending order.

    Names are ordered by their hash: the first are for validation, the next for testing, each share rounded up.
    Validation is the same whatever the test fraction is.
    """
    order = np.array(sorted(range(len(names)), key=lambda place: digest("split", seed, names[place])), dtype=np.int64)
    val = math.ceil(val_fraction * len(names))
    test = val + math.ceil(test_fraction * len(names))
    dealt = {"train": order[test:], "val": order[:val]}
    if test_fraction > 0:
        dealt["test"] = order[val:test]
    return {role: np.sort(places) for role, places in dealt.items()}
