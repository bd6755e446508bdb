"""Training data that is read as a stream, from its first row to its last, each epoch in another order."""

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from lightning import Trainer
from torch.utils.data import IterableDataset, get_worker_info

from layersim.data.samplers import Loader
from layersim.data.splits import Sample, seeded
from layersim.errors import UserError, as_user_error

Row = dict[str, Any]
UNTOLD_CLASSES = "a stream does not tell its classes: set --model.backbone.init_args.num_classes"


class Stream(IterableDataset[Sample]):
    """Samples made of rows as they come; nobody need know how many there are.

    `datasets` deals the rows out: whole files to processes where these divide their number, else every R-th row; files
    to a process's loader workers, of which those without a file stay idle. So each row is read exactly once an epoch,
    but which rows meet in a step depends on the number of processes and workers. Files are shuffled, and rows as far as
    a buffer reaches, by the seeds and the epoch. One process ends an epoch with the last row. Of several, none can know
    when the others end: each begins anew what it has read, and the trainer says how many batches an epoch has.

    Args:
        rows: of the source.
        source: the split that they are of.
        told: where they come from, for errors.
        seed: of the order and of what is random in samples.
        buffer: rows out of which the next is drawn.
    """

    run_seed = 0
    """Of the run that trains on it."""
    classes: int | None = None
    """C of the backbone, which no label may reach; None until it is known."""
    sample: Callable[[Any], Sample] | None = None
    """Makes of a piece what the backbone reads, and "label" where there is one; set once the backbone is known."""

    def __init__(self, rows: datasets.IterableDataset, source: str, told: str, *, seed: int, buffer: int) -> None:
        self.rows = rows
        self.source = source
        self.told = told
        self.seed = seed
        self.buffer = buffer
        self.pieces: Callable[[Iterator[Row]], Iterator[Any]] = iter
        """What samples are made of, in order: rows, unless set otherwise."""
        self.rank, self.processes = 0, 1
        # epoch, and pieces that each worker passes over; shared with workers that live on
        self._place = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @staticmethod
    def check_end(trainer: Trainer) -> None:
        """Raises a UserError where several processes are not told when an epoch, or the training, ends, or when it is
        validated."""
        if trainer.world_size == 1 or isinstance(trainer.limit_train_batches, int):
            return
        without = (
            f"where the training data is a stream, none of {trainer.world_size} processes knows when the others' ends"
        )
        if trainer.max_steps < 0:
            raise UserError(
                f"{without}: set --trainer.limit_train_batches to a number of batches, or --trainer.max_steps"
            )
        if trainer.limit_val_batches and isinstance(trainer.val_check_interval, float):
            raise UserError(
                f"{without}, so that no epoch ends and nothing is validated: set --trainer.limit_train_batches to a "
                "number of batches, or --trainer.val_check_interval to one and --trainer.check_val_every_n_epoch=null"
            )

    @property
    def share(self) -> str:
        """For the line that says what was opened."""
        return f"the rows of {self.source} in train as they come (each drawn out of {self.buffer})"

    def begin(self, epoch: int, passed: int) -> None:
        """Sets the epoch that is read next, and how many of its pieces each worker gives empty."""
        self._place.copy_(torch.tensor([epoch, passed]))

    def first(self) -> Sample:
        """The sample that the source's first row begins."""
        for piece in self.pieces(self._guarded(self.rows)):
            with seeded(self.seed, 0, 0, self.run_seed):
                return self._checked(piece)
        raise UserError(f"{self.told} has no rows: change --data.path or --data.train_split")

    def __iter__(self) -> Iterator[Sample]:
        epoch, passed = self._place.tolist()
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        lanes, lane = self.processes * workers, self.rank * workers + number
        indices = itertools.count(lane, lanes)
        for turn in itertools.count():
            empty = True
            for piece in self.pieces(self._guarded(self.dealt(epoch, turn))):
                index, empty = next(indices), False
                if index < passed * lanes:
                    yield {}
                    continue
                with seeded(self.seed, epoch, index, self.run_seed):
                    sample = self._checked(piece)
                yield sample | {"index": index, "position": index}
            if empty or self.processes == 1:
                return

    def dealt(self, epoch: int, turn: int) -> datasets.IterableDataset:
        """The rows of this process when it reads an epoch's for the first time, or again."""
        entropy = np.random.SeedSequence([self.seed, epoch, self.run_seed, turn])
        rows = self.rows.shuffle(seed=int(entropy.generate_state(1)[0]), buffer_size=self.buffer)
        return split_dataset_by_node(rows, self.rank, self.processes) if self.processes > 1 else rows

    def _checked(self, piece: Any) -> Sample:
        if self.sample is None:
            raise UserError("it is not known yet what the backbone reads: call check(backbone) before reading samples")
        sample = self.sample(piece)
        label = sample["label"]  # a language model's are tokens, which the tokenizer answers for
        if self.classes is not None and isinstance(label, int) and not 0 <= label < self.classes:
            raise UserError(
                f"labels must lie in 0..{self.classes - 1}, as the backbone has {self.classes} classes, but a row of "
                f"{self.told} has {label}: set --model.backbone.init_args.num_classes"
            )
        return sample

    def _guarded(self, rows: datasets.IterableDataset) -> Iterator[Row]:
        with as_user_error(f"{self.told} cannot be read as a stream", "Change --data.path"):
            yield from rows


class StreamLoader(Loader):
    """Batches of a stream, of the process that the trainer tells; a training that goes on within an epoch, of whose
    batches `place` tells how many it has read, reads on where it was.

    What has been read is passed over: the rows are read again, but no sample is made of them, save a batch of each
    worker at most.
    """

    def __init__(
        self,
        stream: Stream,
        trainer: Trainer | None,
        collate: Callable[[list[Sample]], Any],
        **options: Any,
    ) -> None:
        super().__init__(stream, collate_fn=partial(_collate, collate=collate), **options)
        self.stream = stream
        self.trainer = trainer
        self.place: Callable[[], int] = int
        if trainer is not None:
            stream.check_end(trainer)
            stream.rank, stream.processes = trainer.global_rank, trainer.world_size

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        read = self.place()
        if read < sys.maxsize:
            # no worker passes over more than this of its first batches: where others end early, it has given more
            passed = read // max(1, self.num_workers) * (self.batch_size or 1)
            self.stream.begin(self.trainer.current_epoch if self.trainer else 0, passed)
            batches = 0
            for batches, batch in enumerate(super().__iter__(), start=1):
                if batches > read:
                    yield batch
            if self.stream.processes > 1 and not batches:
                raise UserError(f"{self.stream.told} has no row for process {self.stream.rank}: give fewer processes")


def hold_out_rows(
    rows: datasets.IterableDataset, columns: list[str], share: float, count: int | None, told: str
) -> tuple[datasets.IterableDataset, datasets.Dataset]:
    """A stream without the rows that their content's hash holds out, and the first of those.

    So every process decides alike without having seen the others' rows, and rows of equal content stay on one side.
    Images are not decoded; `columns` are those whose content counts, `share` is of rows held out, on average, and
    `count` of those that are kept at most: without one, the whole stream would have to be read.
    """
    if count is None:
        raise UserError(
            "what is held out of a stream is found by reading it: set --data.max_eval_samples to a number, or "
            "--data.val_split to a split of its own"
        )
    with as_user_error(f"{told} cannot be read as a stream", "Change --data.path"):
        held = list(rows.filter(partial(_is_held, columns=columns, share=share)).take(count))
    if not held:
        raise UserError(f"no row of {told} is held out: raise --data.val_fraction, or set --data.val_split")
    kept = rows.filter(partial(_is_held, columns=columns, share=share, otherwise=True))
    return kept, datasets.Dataset.from_list(held, features=rows.features)


def _is_held(row: Row, *, columns: list[str], share: float, otherwise: bool = False) -> bool:
    digest = hashlib.blake2b(digest_size=8)
    for column in columns:
        cell = row[column]
        if isinstance(cell, dict):  # an image; of one in a file its folder and name stand for it
            cell = cell["bytes"] or "/".join(Path(cell["path"] or "").parts[-2:])
        digest.update(cell if isinstance(cell, bytes) else str(cell).encode(errors="surrogatepass"))
        digest.update(b"\0")
    return (int.from_bytes(digest.digest()) < share * 2**64) != otherwise


def _collate(samples: list[Sample], collate: Callable[[list[Sample]], Any]) -> Any:
    return collate(samples) if samples[0] else {}
