"""Orders by length: exact over ranks, as the plain order is."""

from itertools import chain

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from layersim.data import TrainSampler
from layersim.data.samplers import bucketed_order


def shares(lengths: np.ndarray, batch_size: int, ranks: int, epoch: int, seed: int = 3) -> list[list[list[int]]]:
    """What each rank reads, step by step."""
    read = []
    for rank in range(ranks):
        sampler = TrainSampler(
            range(len(lengths)), batch_size, num_replicas=ranks, rank=rank, seed=seed, lengths=lengths
        )
        sampler.set_epoch(epoch)
        order = iter(sampler)
        read.append([[next(order) for _ in share] for share in sampler.shares])
        assert next(order, None) is None
    return read


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=24, max_size=90), st.integers(1, 4), st.integers(1, 6), st.integers(0, 4))
def test_each_step_of_all_ranks_is_the_step_of_one_process(
    lengths: list[int], batch_size: int, ranks: int, epoch: int
) -> None:
    array = np.array(lengths)
    (alone,) = shares(array, batch_size * ranks, 1, epoch)
    together = shares(array, batch_size, ranks, epoch)
    left_out = len(lengths) % (batch_size * ranks)
    if 0 < left_out < ranks:
        alone = alone[:-1]
    assert [list(chain(*parts)) for parts in zip(*together, strict=True)] == alone
    read = list(chain(*alone))
    assert len(set(read)) == len(read) == len(lengths) - (left_out if left_out < ranks else 0)


def test_batches_are_alike_in_length_and_shuffled() -> None:
    lengths = np.random.default_rng(1).integers(1, 100, 1000)
    order = bucketed_order(lengths, 10, np.random.default_rng(0))
    batches = lengths[order].reshape(100, 10)
    control = lengths[np.random.default_rng(0).permutation(1000)].reshape(100, 10)
    assert np.ptp(batches, axis=1).mean() < 5 < 60 < np.ptp(control, axis=1).mean()
    # short and long batches alternate: neighbours are as far apart as random ones, a third of the range
    assert 20 < np.abs(np.diff(batches.mean(axis=1))).mean() < 46


def test_what_fills_no_batch_comes_last_and_is_drawn_from_all_lengths() -> None:
    lengths = np.arange(27)
    last = [bucketed_order(lengths, 10, np.random.default_rng(seed))[-7:] for seed in range(300)]
    assert abs(np.mean(last) - 13) < 0.5
    assert sorted(bucketed_order(lengths, 40, np.random.default_rng(0))) == list(range(27))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(1).integers(1, 9, 50)
    assert shares(lengths, 5, 1, 2) == shares(lengths, 5, 1, 2)
    assert len({str(shares(lengths, 5, 1, epoch, seed)) for epoch in range(3) for seed in range(3)}) == 9
