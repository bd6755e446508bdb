"""A split: samples that know where in their source they lie, what their label is, and nothing of the other splits."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from layersim.errors import UserError

Integers = NDArray[np.int64]
Sample = dict[str, Any]

_EVALUATION = 2**32 - 1  # stands where an epoch's number stands in the seeds of training's orders


class Split(Dataset[Sample], ABC):
    """A map-style data set of samples with "index", "position" and, where there are labels, "label".

    The index counts in the source, so that splits can be told apart; the position, 0 … N − 1, is the sample's place in
    an order that the seed draws. So groups of consecutive positions are random groups, which depend neither on how the
    source is sorted (by class, by length, by document) nor on batches or processes.

    What is random in a sample (augmentation) depends on the seeds, the epoch and the sample's index alone: it is the
    same on any number of processes and loader workers, in any order, and after a resume. For that, a sample is read
    with torch's random generator set to those, and the generator's own state is put back afterwards.

    Args:
        source: where the samples come from: two splits of one source are disjoint if and only if index + offset are.
        index: (N,) position of each sample in what was opened: the source, or a slice of it.
        labels: (N,) integer classes, or None where there are none.
        seed: of the order, and of the random part of samples.
        offset: where in the source the slice begins.
    """

    lengths: Integers | None = None
    """(N,) by which similar samples are put into one batch; None: batches are mixed at random."""
    random = True
    """Whether `inputs` may draw from torch's generator, the setting of which takes longer than reading tokens."""
    run_seed = 0
    """Of the run that trains on it; evaluation is the same in every run."""

    def __init__(self, source: str, index: Integers, labels: Integers | None, *, seed: int, offset: int = 0) -> None:
        index, labels = np.asarray(index), None if labels is None else np.asarray(labels)
        if labels is not None and (labels.shape != index.shape or labels.dtype.kind not in "biu"):
            raise UserError(f"Expected a whole number as label for each of {len(index)} samples of {source}.")
        self.source = source
        self.offset = offset
        self.index = index
        self.labels = labels
        self.seed = seed
        self.order = evaluation_generator(seed).permutation(len(index))
        """(N,) which sample is at position 0, 1, …; evaluation reads them so."""
        self.position = np.argsort(self.order)
        """(N,) the position of each sample."""
        # shared memory, so that loader workers that live on see the next epoch
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @abstractmethod
    def inputs(self, place: int) -> Sample:
        """What the backbone reads of the sample at this place of the index."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the training sampler before each epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, place: int) -> Sample:
        index = int(self.index[place])
        with seeded(self.seed, int(self._epoch), index, self.run_seed) if self.random else nullcontext():
            sample = self.inputs(place)
        if not isinstance(sample, Mapping):
            raise UserError(
                f"Expected what the backbone reads by its names, such as image, from {type(self).__name__}.inputs, but "
                f"got a {type(sample).__name__}."
            )
        label = {} if self.labels is None else {"label": int(self.labels[place])}
        return {**sample, **label, "index": index, "position": int(self.position[place])}


def evaluation_generator(seed: int) -> np.random.Generator:
    """Draws the order of evaluation: the same every epoch, and none that training reads in."""
    return np.random.default_rng([seed, _EVALUATION])


def shared_samples(one: Split, other: Split) -> int:
    """How many samples of `other` are in `one` too; 0 where they come from different sources. Not known where one of
    the sources joins several splits ("train+extra", "all")."""
    if one.source == other.source:
        return int(np.isin(other.index + other.offset, one.index + one.offset).sum())
    for source in (one.source, other.source):
        if "+" in source or source == "all":
            raise UserError(
                f"whether {other.source} and {one.source} share samples is not known, since {source} joins several "
                f"splits: name one split, or a slice of one, in each of --data.train_split, val_split and test_split"
            )
    return 0


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """torch's host generator set from these integers, and put back to where it was."""
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: that would reset the accelerators' generators too
        torch.default_generator.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
        yield


def hold_out(labels: Integers, count: int, *, seed: int, remedy: str) -> tuple[Integers, Integers]:
    """Positions of the samples that stay and of `count` samples held out, stratified by label (N,), so that every class
    is in both parts; each in ascending order. The remedy is the options that an error tells to change."""
    from sklearn.model_selection import train_test_split  # here, because --help need not wait for scikit-learn

    classes, sizes = np.unique(labels, return_counts=True)
    if len(alone := classes[sizes == 1]):
        raise UserError(
            f"cannot hold out {count} of {len(labels)} samples with every class in both parts: {len(alone)} of "
            f"{len(classes)} classes have a single sample, such as class {alone[0]}. Change {remedy}"
        )
    try:
        kept, held = train_test_split(np.arange(len(labels)), test_size=count, stratify=labels, random_state=seed)
    except ValueError as error:
        raise UserError(
            f"cannot hold out {count} of {len(labels)} samples with every class in both parts: {error} Change {remedy}"
        ) from error
    return np.sort(kept), np.sort(held)
