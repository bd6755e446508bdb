"""Where documents, laid end to end, are cut into blocks."""

from itertools import pairwise
from typing import Literal

import numpy as np

from layersim.data.splits import Integers

Boundaries = Literal["join", "separate"]


def block_bounds(offsets: Integers, block_size: int, *, boundaries: Boundaries, keep_partial: bool) -> Integers:
    """First token and end of every block, (M, 2), in the documents' order.

    "join": the stream of all documents is cut every block_size tokens, so that a block may span documents. "separate":
    every document is cut by itself, so that each leaves a partial block. A block of a single token predicts nothing and
    is left out.

    Args:
        offsets: (documents + 1,) where each document starts in the stream; the last is its end.
        block_size: tokens in a full block.
        boundaries: how documents meet.
        keep_partial: keep blocks that are not full.
    """
    edges = offsets[[0, -1]] if boundaries == "join" else offsets
    starts = np.concatenate(
        [np.empty(0, np.int64)] + [np.arange(first, end, block_size) for first, end in pairwise(edges)]
    )
    ends = np.minimum(starts + block_size, edges[np.searchsorted(edges, starts, side="right")])
    sizes = ends - starts
    kept = sizes >= (2 if keep_partial else block_size)
    return np.stack([starts, ends], axis=1)[kept]
