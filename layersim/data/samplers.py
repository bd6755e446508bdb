"""Which samples each process reads: together exactly what one process would read, none twice and none lost.

torch's DistributedSampler repeats samples until every rank has as many. That falsifies every validation number by a
little, and training by an epoch's last step. These two deal out one process's batches instead. They subclass
DistributedSampler because Lightning leaves such samplers alone, whatever its use_distributed_sampler says.
"""

from collections.abc import Callable, Iterator, Sized
from typing import Any, cast

import numpy as np
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from layersim.data.splits import Integers, Sample
from layersim.errors import UserError, at_least
from layersim.evaluation import process, processes

WINDOW = 50
"""Global batches that are sorted together: more pads less, and mixes less."""


def evaluation_batch_size(length: int, batch_size: int, num_replicas: int | None = None) -> int:
    """The batch size, or as much less as gives each process a batch: a trainer passes over the whole epoch on one that
    has none, and the others wait for what it should have told."""
    replicas = num_replicas or processes()
    if length < replicas:
        raise UserError(
            f"an evaluation on {replicas} processes takes at least as many samples, got {length}: give more data, or "
            "fewer --trainer.devices"
        )
    return min(batch_size, length // replicas)


def bucketed_order(lengths: Integers, batch: int, generator: np.random.Generator) -> Integers:
    """A permutation of 0 … N−1 whose batches are alike in length.

    Samples are shuffled, sorted by length inside windows of WINDOW batches, and the batches are shuffled. What does
    not fill a batch comes last and is drawn from all lengths alike, so that leaving it out favours none.
    """
    order = generator.permutation(len(lengths))
    full = len(order) - len(order) % batch
    for start in range(0, full, WINDOW * batch):
        part = order[start : min(start + WINDOW * batch, full)]
        part[:] = part[np.argsort(lengths[part], kind="stable")]
    batches = generator.permutation(order[:full].reshape(-1, batch))
    return np.concatenate([batches.ravel(), order[full:]])


class EvaluationSampler(DistributedSampler[int]):
    """Deals out one process's batches, whole batch by whole batch; unpadded and in one order.

    It yields plain indices, so that `DataLoader(sampler=…, batch_size=b)` forms exactly those batches again: rank r of
    R reads the batches r, r + R, … that one process would read.

    Args:
        dataset: the data set, or anything that has its length.
        batch_size: samples in a batch, b; the loader's own.
        order: (N,) in which samples are read; as they come where None.
        num_replicas: number of processes, R; torch.distributed's where it runs, else 1.
        rank: which of them this is, from 0; torch.distributed's where it runs, else 0.

    Raises:
        UserError: batch_size below 1.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        *,
        order: Integers | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        at_least(1, "batch_size", batch_size)
        super().__init__(cast(Dataset[int], dataset), *_place(num_replicas, rank), shuffle=False)
        order = np.arange(len(dataset)) if order is None else order
        starts = range(self.rank * batch_size, len(dataset), self.num_replicas * batch_size)
        self.batches = [order[start : start + batch_size] for start in starts]
        self.num_samples = sum(map(len, self.batches))
        self.total_size = len(dataset)

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches:
            yield from batch.tolist()


class TrainSampler(DistributedSampler[int]):
    """Shuffled by seeds and epoch; R ranks read in every step together what one process with batch b·R reads in it.

    With perm the epoch's permutation, global batch k is perm[kbR..(k+1)bR), and rank r takes perm[kbR+rb..kbR+(r+1)b).
    The last, partial global batch is split into nearly equal shares, so that every rank takes the same number of
    steps; where fewer than R samples remain, they are left out of this epoch. The order depends on nothing but the two
    seeds and the epoch, so that a resumed run reads what an unbroken one would have read.

    Args:
        dataset: the data set, or anything that has its length. If it has a set_epoch of its own, because what a
            sample looks like depends on the epoch, it is told the epoch too.
        batch_size: samples in a batch of one process, b; the loader's own.
        num_replicas: number of processes, R; torch.distributed's where it runs, else 1.
        rank: which of them this is, from 0; torch.distributed's where it runs, else 0.
        seed: of the data, not negative.
        run_seed: of the run, not negative: runs that differ in it alone read in other orders.
        drop_last: leave the last, partial global batch out.
        lengths: (N,) of each sample, for a permutation whose global batches are alike in length; None: any permutation.
        place: tells, when an epoch's reading begins, how many of its batches a resumed training has read already.

    Raises:
        UserError: batch_size below 1; too few samples for a single step.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        *,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,
        run_seed: int = 0,
        drop_last: bool = False,
        lengths: Integers | None = None,
        place: Callable[[], int] = int,
    ) -> None:
        at_least(1, "batch_size", batch_size)
        super().__init__(cast(Dataset[int], dataset), *_place(num_replicas, rank), seed=seed, drop_last=drop_last)
        self.global_batch_size = batch_size * self.num_replicas
        self.shares: list[range] = []
        for start in range(0, len(dataset), self.global_batch_size):
            size = min(self.global_batch_size, len(dataset) - start)
            if size < self.num_replicas or (drop_last and size < self.global_batch_size):
                break
            first, end = (start + size * number // self.num_replicas for number in (self.rank, self.rank + 1))
            self.shares.append(range(first, end))
        if not self.shares:
            needed = self.num_replicas * (batch_size if drop_last else 1)
            raise UserError(
                f"a step on {self.num_replicas} process(es) takes at least {needed} training samples, "
                f"got {len(dataset)} (batch_size={batch_size}, drop_last={drop_last}): "
                f"give more data, or fewer --trainer.devices"
            )
        self.num_samples = sum(map(len, self.shares))
        self.total_size = len(dataset)
        self.run_seed = run_seed
        self.lengths = lengths
        self.place = place

    def __iter__(self) -> Iterator[int]:
        # torch's own sampler adds seed and epoch, which makes epoch 1 of seed 0 the same as epoch 0 of seed 1
        generator = np.random.default_rng([self.seed, self.epoch, self.run_seed])
        if self.lengths is None:
            order = generator.permutation(self.total_size)
        else:
            order = bucketed_order(self.lengths, self.global_batch_size, generator)
        for share in self.shares[self.place() :]:
            yield from order[share.start : share.stop].tolist()

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)


class Loader(DataLoader[Sample]):
    """A loader that begins an epoch with its first batch: Lightning asks for the iterator before it tells a resumed
    training's epoch, and workers that read ahead would read another one's order.

    To Lightning it is one that can go on within an epoch. It keeps no state for that: `TrainSampler` and
    `StreamLoader` ask the trainer.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def _place(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    return processes() if num_replicas is None else num_replicas, process() if rank is None else rank
