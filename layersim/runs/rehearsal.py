"""What a run will log, and whether its samples are enough, found before it begins: by measuring made-up samples.

Letters: L layers, N samples, D width.
"""

import warnings
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from math import ceil
from typing import Protocol, runtime_checkable

import torch

from layersim.errors import UserError, meant
from layersim.module import LayerwiseModule
from layersim.outputs import LayerFeatures, LayerOutput, Readout
from layersim.similarity.features import TooFewSamples

_MADE_UP = 256
"""So many samples are measured at first: each measure of ours has enough of them."""
_AT_MOST = 2**14
"""So many samples are made up where it is not known how many there are, or there are more."""
_SILENT = ("callbacks", "layersim", "lightning", "pytorch_lightning")
"""Packages whose callbacks log nothing that is not known here."""
STAGES = {"fit": "val", "validate": "val", "test": "test"}
"""Where a verb measures, which is what stands before the names."""


@runtime_checkable
class Rehearses(Protocol):
    """A callback that can tell what it would log."""

    def rehearse(self, module: LayerwiseModule, samples: int) -> set[str]:
        """Names of what an epoch of so many samples logs, without the stage; `*` stands for what is not known yet.
        Raises `TooFewSamples` where they are too few for what was asked for."""


def logged_names(
    callbacks: Iterable[object], module: LayerwiseModule, samples: int | None = None, *, verb: str = "fit", stage: str
) -> set[str] | None:
    """The names that a run of the trainer's callbacks logs; `*` in them stands for any letters. None where one of them
    is somebody else's, which may log whatever it likes.

    An evaluation reads so many samples, 0 or more; None: not known, and taken to be enough. The stage, `val` or `test`,
    stands before the names.
    """
    names, measured, known = set[str](), set[str](), True
    if verb == "fit":
        names |= {"epoch", "step", "train/loss", "train/loss_step", "lr-*"}
    for callback in callbacks:
        if not isinstance(callback, Rehearses):
            known &= type(callback).__module__.partition(".")[0] in _SILENT
        elif samples != 0:
            logs = _rehearsed(callback, module, samples, stage)
            own = {name.rpartition("/layer_")[0] or name for name in logs}  # of all layers, which may not be known yet
            if twice := sorted(measured & own):
                raise UserError(
                    f"Two callbacks measure {', '.join(twice)}, but a run's record holds one of each name: give "
                    "measures names of their own, or leave one callback out of --trainer.callbacks."
                )
            measured |= own
            names |= {f"{stage}/{name}" for name in logs}
    return names if known else None


def _rehearsed(callback: Rehearses, module: LayerwiseModule, samples: int | None, stage: str) -> set[str]:
    """More and more samples, up to those there are: what needs few of them is known soon."""
    most = _AT_MOST if samples is None else min(samples, _AT_MOST)
    tried = min(most, _MADE_UP)
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of made-up values
                return callback.rehearse(module, tried)
        except TooFewSamples as error:
            if tried < most:
                tried = min(most, 2 * tried)
                continue
            there = "the" if samples is None else samples
            raise UserError(
                f"{type(callback).__name__} would measure {there} {stage} samples, but {error}. Give more data "
                f"(--data, --trainer.limit_{stage}_batches), or take the measure out of --trainer.callbacks."
            ) from error


def require_logged(wanted: str, names: set[str] | None, who: str, option: str) -> None:
    """Refuses what somebody waits for and nobody logs, by the names of `logged_names`, and names near ones."""
    if names is None or any(fnmatchcase(wanted, name) for name in names):
        return
    hint = meant(wanted, names) or f" It logs {', '.join(sorted(name for name in names if name.count('/') == 1))}."
    raise UserError(f"{who} waits for {wanted!r}, which this run does not log.{hint} Change {option}.")


def check_monitors(callbacks: Iterable[object], names: set[str] | None) -> None:
    """Refuses a callback, such as EarlyStopping or ModelCheckpoint, whose `monitor` is not among the names."""
    for callback in callbacks:
        if isinstance(wanted := getattr(callback, "monitor", None), str):
            who = type(callback).__name__
            require_logged(wanted, names, who, f"`monitor` of {who} in --trainer.callbacks")


def evaluated(samples: int, batch_size: int, limit: float | None) -> int:
    """How many of a split's samples an evaluation reads, under a trainer's limit: batches, a share of them, or none."""
    batches = ceil(samples / batch_size)
    if isinstance(limit, float):
        batches = int(batches * min(1.0, limit))
    elif limit is not None:
        batches = min(limit, batches)
    return min(samples, batches * batch_size)


def classifier_width(module: LayerwiseModule) -> int:
    """D of what a linear classifier reads, or of the features of a small batch; 8 where nothing tells."""
    width = getattr(module.backbone.classifier, "in_features", 0)
    with suppress(Exception):  # a forward of one's own need not take a small batch
        return int(width or module.backbone.width)
    return 8


def made_up(layers: int, width: int, samples: int) -> LayerOutput:
    """What a step might return of N samples of two classes: (L, N, D) random features, and a reading of them."""
    draw = torch.Generator().manual_seed(0)
    targets, numbers = torch.arange(samples) % 2, torch.arange(samples)
    features = LayerFeatures(torch.randn(layers, samples, width, generator=draw), targets, numbers)
    confidences = torch.rand(layers, samples, generator=draw)
    odds = torch.logit(confidences, eps=1e-6)
    readout = Readout(torch.ones(layers), targets.expand(layers, -1), confidences, odds, confidences)
    return LayerOutput(features, readout, torch.ones(()))
