"""One model's features of a sample of the data. Letters: L layers, N samples, D width."""

from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from layersim.backbones import Backbone
from layersim.data import SplitDataModule
from layersim.data.blocks import BlockData
from layersim.data.splits import Sample, Split
from layersim.errors import UserError
from layersim.evaluation import evaluate
from layersim.metrics import KeptSamples
from layersim.outputs import LayerFeatures
from layersim.similarity.positions import splitmix64

LEAST = 4
"""Samples that all measures are defined for, with options that ask for no more."""


@dataclass(frozen=True)
class ModelFeatures:
    """What a model makes of a sample of the data."""

    values: Tensor
    """(L, N, D) on the host."""
    identity: Tensor
    """(N, 2) by which samples are known: their index in the source, ascending, and their target (a token; a class)."""


def read_features(
    backbone: Backbone, data: SplitDataModule, *, split: str = "val", max_samples: int = 4096, name: str = "the model"
) -> ModelFeatures:
    """Runs the model over the split, with a progress bar.

    A sample is known by its index in the source, since data modules may order a split by the lengths that a
    model's own tokenizer gives. Of more than `max_samples` those whose index has the smallest hash are read, and the
    others are not even run; a language model's samples are tokens, which are chosen once all have been.

    Args:
        backbone: the model, on its device.
        data: a data module for this model alone: some take its tokenizer or image size.
        split: such as `val`; read as evaluation reads it, `train` too.
        max_samples: how many samples to keep at most.
        name: what the progress bar and errors call the model.

    Raises:
        UserError: data that the model cannot read, no such split, or `max_samples` below 4.
    """
    kept = _OnHost(max_samples=max_samples, least=LEAST)
    chosen = fitted_split(backbone, data, split, name)
    rows = torch.arange(len(chosen))
    if not backbone.reads_tokens:
        rows = splitmix64(torch.from_numpy(chosen.index)).argsort()[:max_samples].sort().values
    loader: DataLoader[Sample] = DataLoader(
        Subset(chosen, rows.tolist()),
        batch_size=data.eval_batch_size,
        num_workers=data.num_workers,
        collate_fn=data.collate,
    )
    batches: Any = track(loader, description=f"Reading {name}")
    ((values, targets, index),) = evaluate(backbone, ({**batch, "position": batch["index"]} for batch in batches), kept)
    return ModelFeatures(values, torch.stack([index, torch.zeros_like(index) if targets is None else targets.cpu()], 1))


def fitted_split(backbone: Backbone, data: SplitDataModule, split: str, name: str) -> Split:
    """The split, as this model reads it.

    Raises:
        UserError: data that the model cannot read, or no such split.
    """
    try:
        if isinstance(data, BlockData) != backbone.reads_tokens:
            classifier, language = "a classifier", "a language model"
            found, wanted = (classifier, language) if backbone.reads_tokens else (language, classifier)
            raise UserError(f"these are for {found}, but it is {wanted}: choose other --data")
        data.setup()
        data.adapt(backbone)
        if split not in data.splits:
            raise UserError(f"there is no {split} split: set --data.{data.test_option}, or --split val")
        chosen = data.evaluation_split(split)
        sample = chosen[0]
        if ("image" in sample) != (backbone.input_size is not None):
            found, wanted = ("images", "texts") if "image" in sample else ("texts", "images")
            raise UserError(f"these are {found}, but it reads {wanted}: choose other --data")
        data.check_sample(sample, split, backbone)
    except UserError as error:
        raise UserError(f"The data do not fit {name}: {error}") from error
    return chosen


class _OnHost(KeptSamples):
    """Keeps features on the host, wherever the model runs."""

    def update(self, batch: LayerFeatures) -> None:
        super().update(LayerFeatures(batch.values.cpu(), batch.targets, batch.position))
