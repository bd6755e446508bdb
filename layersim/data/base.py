"""What all data modules share: named splits, loaders that are exact on any number of processes, and a preflight."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, default_collate

from layersim.data.samplers import EvaluationSampler, Loader, TrainSampler, bucketed_order, evaluation_batch_size
from layersim.data.splits import Integers, Sample, Split, evaluation_generator, shared_samples
from layersim.data.streams import UNTOLD_CLASSES, Stream, StreamLoader
from layersim.errors import UserError, at_least, check_seed, check_share

if TYPE_CHECKING:
    from layersim.data.inputs import Inputs

Batch = dict[str, Any]


class SplitDataModule(LightningDataModule, ABC):
    """Data in splits "train", "val" and, where there are any, "test" and "predict" (else prediction reads "val").

    A subclass says in `load` what the splits are. Every sample is a dict with "index", its position in its source, and
    "label"; a batch is a dict of (N,) int64 tensors of those and of what the backbone reads.

    Training is shuffled by seed, epoch and the run's own seed (`seed_everything`) alone; R processes read in each step
    what one process with R times the batch would read, and leave out fewer than R samples at an epoch's end. Evaluation
    reads every sample exactly once, always in one order that the seed draws (samplers.py), so that any part of it is a
    random sample, however the source is sorted.

    Args:
        batch_size: samples in a training batch of one process: R processes together take R times as many in a step.
        eval_batch_size: samples in a batch of validation, test and prediction, or fewer, that each process may have
            a batch; batch_size if None.
        num_workers: loader processes of each loader; 0 reads in the main process.
        pin_memory: whether batches are put into pinned memory; None: if and only if CUDA is there.
        drop_last: leave an epoch's last, partial training step out.
        max_train_samples: train on this many samples (images, texts, blocks), drawn by the seed; None: on all.
        max_eval_samples: the same for each of the other splits.
        seed: of the orders, of the random part of samples, and of the splits that are drawn. The run's own seed adds to
            the training order and its random part, and to nothing else: all seeds are measured on the same samples.
    """

    test_option: ClassVar[str] = "test_split"
    """The option that gives test data, for the error that there is none."""
    order = "drawn by seed"
    """In which evaluation reads, in words: of positions, and of the groups of a minibatch measure."""
    left_out = 0
    """Samples that could not be read, of all splits that were opened; known once the data is loaded."""

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        drop_last: bool = False,
        max_train_samples: int | None = None,
        max_eval_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = at_least(1, "batch_size", batch_size)
        self.eval_batch_size = at_least(
            1, "eval_batch_size", batch_size if eval_batch_size is None else eval_batch_size
        )
        self.num_workers = at_least(0, "num_workers", num_workers)
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.drop_last = drop_last
        self.limits = {"max_train_samples": max_train_samples, "max_eval_samples": max_eval_samples}
        for option, limit in self.limits.items():
            at_least(1, option, 1 if limit is None else limit)
        self.seed = check_seed(seed, "--data.seed")
        self.splits: dict[str, Split] = {}
        self.stream: Stream | None = None
        """In place of a training split."""
        self.class_names: list[str] | None = None
        self.section: dict[str, Any] | None = None
        """As a recipe's section `data` writes it, where it was made of one."""
        self.collate: Callable[[list[Sample]], Batch] = default_collate

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """The splits, opened and `capped`; sets class_names where they are known. Called once."""

    def adapt(self, backbone: Any) -> None:
        """A hook: takes from the backbone what the inputs depend on, before samples are read; called more than once."""

    def inputs(self, backbone: Any) -> "Inputs | None":
        """A hook: what makes batches of texts or images as people have them, as evaluation reads its own; no data are
        opened for it. None: nothing does."""
        return None

    def evaluation_split(self, name: str) -> Split:
        """The split, read as evaluation reads it, without what training alone does to its samples; after `adapt`."""
        return self.splits[name]

    def check_sample(self, sample: Sample, split: str, backbone: Any) -> None:
        """A hook: raises a UserError if the backbone cannot read a sample like this one, the split's first."""

    def setup(self, stage: str | None = None) -> None:
        """Loads the splits, once, and fits them to the trainer's backbone where there is a trainer."""
        if not self.splits:
            loaded = self.load()
            if not (isinstance(loaded, Mapping) and all(isinstance(split, Split) for split in loaded.values())):
                raise UserError(f"Expected a Split by its role, train and val, from {type(self).__name__}.load.")
            self.splits = _Splits(loaded)
            for role, split in self.splits.items():
                if len(self.capped(role, split.index)) < len(split):
                    raise UserError(
                        f"{type(self).__name__} reads all of its {len(split)} {role} samples: leave "
                        f"--data.max_{'train' if role == 'train' else 'eval'}_samples out"
                    )
        backbone = getattr(self.trainer.lightning_module, "backbone", None) if self.trainer else None
        if backbone is not None:
            self.adapt(backbone)

    def check(self, backbone: Any) -> None:
        """The preflight, before anything is trained or written: can this backbone learn these data?

        Reads whole label columns, but only the first sample of each split. Of the backbone it wants `num_classes`, and
        of one of images `input_size`: their channels, height and width, None if any will do.

        Raises:
            UserError: an empty split, labels outside 0 … C−1, or a sample that the backbone cannot read.
        """
        self.setup()
        self.adapt(backbone)
        for name, split in self.splits.items():
            if len(split) == 0:
                raise UserError(f"the {name} data is empty: change --data.{name}_split or its share of the samples")
            if split.labels is not None:
                self._check_labels(name, np.unique(split.labels).tolist(), backbone.num_classes)
            self.check_sample(split[0], name, backbone)
        if self.stream is not None:
            self.stream.classes = backbone.num_classes
            self.check_sample(self.stream.first(), "train", backbone)

    def _check_labels(self, split: str, there: list[int], known: int) -> None:
        smallest, largest = there[0], there[-1]
        if smallest < (-1 if split == "predict" else 0):
            raise UserError(
                f"labels must lie in 0..{known - 1}, but the {split} data has {smallest}, which often marks samples "
                f"without a label, as only the predict split may: choose a split whose samples all have one"
            )
        if largest >= known and smallest > 0 and self.class_names is None and len(there) <= known:
            raise UserError(
                f"labels must lie in 0..{known - 1}, as the backbone has {known} classes, but the {split} data has "
                f"{len(there)}, from {smallest} to {largest}: number them from 0"
            )
        if largest >= known:
            raise UserError(
                f"labels must lie in 0..{known - 1}, as the backbone has {known} classes, but the {split} data has "
                f"{largest}, and the data has {self.num_classes} classes: "
                f"set --model.backbone.init_args.num_classes {self.num_classes}"
            )

    def trained_on(self, split: str) -> int:
        """How many samples of a split are in the training data too, as far as the names of splits tell."""
        other = self.splits[split]
        if self.stream is not None:
            return len(other) if other.source == self.stream.source else 0
        return shared_samples(self.splits["train"], other)

    @property
    def num_classes(self) -> int:
        """C of the data, after setup: as many as there are names, or else the largest label of any split plus one."""
        if not self.splits:
            raise UserError("num_classes is known once the data is loaded: call setup() first")
        if self.class_names is not None:
            return len(self.class_names)
        if self.stream is not None:
            raise UserError(UNTOLD_CLASSES)
        labelled = [split.labels for split in self.splits.values() if split.labels is not None and len(split)]
        if not labelled:
            raise UserError(
                "data without labels do not tell their classes: set --data.label_column, or "
                "--model.backbone.init_args.num_classes"
            )
        return 1 + max(int(labels.max()) for labels in labelled)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the classes' names, in the order of their numbers."""
        return {} if self.class_names is None else {"class_names": list(self.class_names)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares a checkpoint's classes with the data's; where either has no names, there is nothing to compare.

        Raises:
            UserError: other classes, or another order.
        """
        self.setup()
        trained = state_dict.get("class_names")
        if trained is not None and self.class_names is not None and trained != self.class_names:
            raise UserError(
                f"the checkpoint was trained on the classes {', '.join(trained)}, in this order, but the data has "
                f"{', '.join(self.class_names)}: change --data, or --ckpt_path"
            )

    def capped(self, role: str, index: Integers) -> Integers:
        """Of a split's numbers (N,), ascending, those that its limit leaves; for `load`."""
        most = self.limits["max_train_samples" if role == "train" else "max_eval_samples"]
        if most is None or most >= len(index):
            return index
        return np.sort(np.random.default_rng(self.seed).choice(index, most, replace=False))

    def train_dataloader(self) -> DataLoader[Sample]:
        split = self.stream or self.splits["train"]
        split.run_seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # as `seed_everything` leaves it
        if isinstance(split, Stream):
            options = {"batch_size": self.batch_size, "drop_last": self.drop_last} | self._loading()
            stream = StreamLoader(split, self.trainer, self.collate, **options)
            stream.place = partial(self._batches_read, stream)
            return stream
        seeds: dict[str, Any] = {"seed": self.seed, "run_seed": split.run_seed}
        sampler = TrainSampler(split, self.batch_size, **seeds, drop_last=self.drop_last, lengths=split.lengths)
        loader = self._loader(split, sampler, self.batch_size)
        sampler.place = partial(self._batches_read, loader)
        return loader

    def _batches_read(self, loader: DataLoader[Sample]) -> int:
        """Of this epoch by a training that goes on within it, all of them where it has only to be ended; else 0, as for
        whoever else reads the training data."""
        if not self.trainer or not any(one is loader for one in tree_leaves(self.trainer.train_dataloader)):
            return 0
        read = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return read if read < self.trainer.num_training_batches else sys.maxsize

    def val_dataloader(self) -> DataLoader[Sample]:
        return self._evaluation_loader(self.splits["val"])

    def test_dataloader(self) -> DataLoader[Sample]:
        if "test" not in self.splits:
            raise UserError(f"there is no test data: set --data.{self.test_option}, or use `validate`")
        return self._evaluation_loader(self.splits["test"])

    def predict_dataloader(self) -> DataLoader[Sample]:
        return self._evaluation_loader(self.splits["predict"] if "predict" in self.splits else self.splits["val"])

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves a batch, all but its numbers: they are bookkeeping, and on the host they cost no synchronisation."""
        moved: Batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return {**moved, "index": batch["index"], "position": batch["position"]}

    def _evaluation_loader(self, split: Split) -> DataLoader[Sample]:
        batch_size = evaluation_batch_size(len(split), self.eval_batch_size)
        order = split.order
        if split.lengths is not None:
            order = bucketed_order(split.lengths, batch_size, evaluation_generator(self.seed))
        return self._loader(split, EvaluationSampler(split, batch_size, order=order), batch_size)

    def _loader(self, split: Split, sampler: EvaluationSampler | TrainSampler, batch_size: int) -> DataLoader[Sample]:
        return Loader(split, batch_size=batch_size, sampler=sampler, collate_fn=self.collate, **self._loading())

    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": self.pin_memory,
            # its own: workers' seeds then neither depend on nor disturb the model's random numbers
            "generator": torch.Generator().manual_seed(self.seed),
        }


class _Splits(dict[str, Split]):
    """By role, of which those that are missing are told."""

    def __missing__(self, role: str) -> Split:
        raise UserError(f"there is no {role} data: `load` gives {', '.join(self) or 'none'}")


class DrawnSplits(SplitDataModule):
    """Data without splits of their own, which the seed deals out.

    Args:
        val_fraction: share of the samples held out for validation, rounded up.
        test_fraction: share held out for testing, rounded up; with 0 there is no test data. It is taken from what
            validation leaves, so that the validation split is the same whatever it is.
        **loader: the options of SplitDataModule.
    """

    test_option = "test_fraction"

    def __init__(self, *, val_fraction: float = 0.1, test_fraction: float = 0.0, **loader: Any) -> None:
        super().__init__(**loader)
        check_share("val_fraction", val_fraction, remedy="Change --data.val_fraction.")
        check_share("test_fraction", test_fraction, zero=True, remedy="Change --data.test_fraction.")
        if val_fraction + test_fraction >= 1:  # something must be left to train on
            raise UserError(
                f"expected val_fraction + test_fraction below 1, got {val_fraction} and {test_fraction}: change "
                "--data.val_fraction or --data.test_fraction"
            )
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
