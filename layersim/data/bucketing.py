"""Orders that put samples of similar length into one batch, so that little is padded."""

import numpy as np

from layersim.data.splits import Integers

WINDOW = 50
"""Global batches that are sorted together: more pads less, and mixes less."""


def bucketed_order(lengths: Integers, batch: int, generator: np.random.Generator, *, window: int = WINDOW) -> Integers:
    """A permutation of 0 … N−1 whose batches are alike in length.

    Samples are shuffled, sorted by length inside windows of that many batches, and the batches are shuffled. What does
    not fill a batch comes last and is drawn from all lengths alike, so that leaving it out favours none.

    Args:
        lengths: (N,) tokens of each sample.
        batch: samples in a batch of all processes together.
        generator: of the two shuffles.
        window: batches that are sorted together.
    """
    order = generator.permutation(len(lengths))
    full = len(order) - len(order) % batch
    for start in range(0, full, window * batch):
        part = order[start : min(start + window * batch, full)]
        part[:] = part[np.argsort(lengths[part], kind="stable")]
    batches = generator.permutation(order[:full].reshape(-1, batch))
    return np.concatenate([batches.ravel(), order[full:]])
