"""The samplers against the batches of one process, with torch's own sampler as the control."""

from collections import Counter
from itertools import chain, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

from layersim.data import EvaluationSampler, TrainSampler
from layersim.data.samplers import evaluation_batch_size
from layersim.errors import UserError

lengths, batch_sizes, replicas = st.integers(0, 70), st.integers(1, 9), st.integers(1, 6)


def batches(sampler: EvaluationSampler | TrainSampler, batch_size: int) -> list[list[int]]:
    """What a plain loader makes of the sampler."""
    length = sampler.total_size
    loader = DataLoader(torch.arange(length), batch_size=batch_size, sampler=sampler)  # type: ignore[arg-type]
    return [batch.tolist() for batch in loader]


def one_process(length: int, batch_size: int) -> list[list[int]]:
    return [list(range(start, min(start + batch_size, length))) for start in range(0, length, batch_size)]


@settings(deadline=None)
@given(lengths, batch_sizes, replicas)
def test_evaluation_deals_out_the_batches_of_one_process(length: int, batch_size: int, ranks: int) -> None:
    dealt = []
    for rank in range(ranks):
        sampler = EvaluationSampler(range(length), batch_size, num_replicas=ranks, rank=rank)
        mine = batches(sampler, batch_size)
        assert len(sampler) == sum(map(len, mine))
        assert mine == one_process(length, batch_size)[rank::ranks]
        dealt += mine
    assert sorted(dealt) == one_process(length, batch_size)


@settings(deadline=None)
@given(st.integers(6, 70), batch_sizes, replicas, st.booleans(), st.integers(0, 5))
def test_each_step_of_all_ranks_is_the_step_of_one_process(
    length: int, batch_size: int, ranks: int, drop_last: bool, epoch: int
) -> None:
    batch_size = min(batch_size, length // ranks)  # at least one step, with drop_last too
    alone = TrainSampler(range(length), batch_size * ranks, num_replicas=1, rank=0, seed=3, drop_last=drop_last)
    together = [
        TrainSampler(range(length), batch_size, num_replicas=ranks, rank=rank, seed=3, drop_last=drop_last)
        for rank in range(ranks)
    ]
    for sampler in [alone, *together]:
        sampler.set_epoch(epoch)
    expected = batches(alone, batch_size * ranks)
    shares = [batches(sampler, batch_size) for sampler in together]
    assert [len(sampler) for sampler in together] == [sum(map(len, share)) for share in shares]

    left_out = length % (batch_size * ranks)
    if not drop_last and 0 < left_out < ranks:
        assert len(expected[-1]) == left_out
        expected = expected[:-1]  # too few for one sample a rank
    assert {len(share) for share in shares} == {len(expected)}
    for step, batch in enumerate(expected):
        parts = [share[step] for share in shares]
        assert list(chain(*parts)) == batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert max(Counter(chain(*chain(*shares))).values()) == 1


def test_torchs_own_sampler_repeats_samples() -> None:
    """The control: what the two properties above rule out is what torch does."""
    own = [DistributedSampler(range(11), num_replicas=2, rank=rank, shuffle=False) for rank in range(2)]  # type: ignore[arg-type]
    assert sum(map(len, own)) == 12
    assert Counter(chain(*own))[0] == 2
    ours = [EvaluationSampler(range(11), 4, num_replicas=2, rank=rank) for rank in range(2)]
    assert [list(sampler) for sampler in ours] == [[0, 1, 2, 3, 8, 9, 10], [4, 5, 6, 7]]


def test_one_process_reads_all_shuffled_with_a_ragged_last_batch() -> None:
    sampler = TrainSampler(range(10), 4)
    assert sorted(sampler) == list(range(10))
    assert list(sampler) != list(range(10))
    assert [len(batch) for batch in batches(sampler, 4)] == [4, 4, 2]
    assert len(TrainSampler(range(10), 4, drop_last=True)) == 8


def test_the_order_depends_on_seeds_and_epoch_alone() -> None:
    def order(seed: int, epoch: int, run_seed: int) -> list[int]:
        sampler = TrainSampler(range(50), 8, seed=seed, run_seed=run_seed)
        sampler.set_epoch(epoch)
        torch.rand(1)
        return list(sampler)

    assert order(1, 2, 3) == order(1, 2, 3)
    assert len({tuple(order(*seeds)) for seeds in product(range(3), repeat=3)}) == 27


def test_the_data_set_is_told_the_epoch() -> None:
    class Epochs(list[int]):
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    data = Epochs(range(4))
    TrainSampler(data, 2).set_epoch(7)
    assert data.epoch == 7
    EvaluationSampler(data, 2).set_epoch(8)
    assert data.epoch == 7


@pytest.mark.parametrize("sampler", [EvaluationSampler, TrainSampler])
def test_batch_size_below_one_is_refused(sampler: type[EvaluationSampler] | type[TrainSampler]) -> None:
    with pytest.raises(UserError, match=r"batch_size must be at least 1, got 0: change --data\.batch_size"):
        sampler(range(4), 0)


def test_data_too_small_for_a_step_is_refused() -> None:
    with pytest.raises(UserError, match=r"on 3 process\(es\) takes at least 3 training samples, got 2 "):
        TrainSampler(range(2), 4, num_replicas=3, rank=0)
    with pytest.raises(UserError, match=r"at least 12 training samples, got 11 \(batch_size=4, drop_last=True\)"):
        TrainSampler(range(11), 4, num_replicas=3, rank=0, drop_last=True)


@pytest.mark.parametrize(
    ("length", "batch", "ranks"), [(360, 400, 2), (361, 400, 2), (5, 64, 4), (4, 64, 4), (100, 8, 2)]
)
def test_every_process_has_an_evaluation_batch(length: int, batch: int, ranks: int) -> None:
    size = evaluation_batch_size(length, batch, ranks)
    assert size <= batch
    shares = [[*EvaluationSampler(range(length), size, num_replicas=ranks, rank=rank)] for rank in range(ranks)]
    assert all(shares)
    assert sorted(chain(*shares)) == list(range(length))
    assert (size == batch) == (length >= batch * ranks)


def test_fewer_samples_than_processes_are_refused() -> None:
    with pytest.raises(UserError, match="on 4 processes takes at least as many samples, got 3"):
        evaluation_batch_size(3, 8, 4)
