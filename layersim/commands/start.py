"""The first screen of a run, how long an epoch takes, and what may be typed when it has ended."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from layersim.commands.preflight import classes_of
from layersim.commands.screens import print_facts, print_next, shown
from layersim.data import SplitDataModule
from layersim.errors import UserError
from layersim.exits.calibration import check_promise
from layersim.module import LayerwiseModule
from layersim.report.configuration import RANDOM, class_of, init_args, is_random
from layersim.report.page import PAGE_FILE
from layersim.report.runs import age
from layersim.runs.models import LAST

_DOES = {"fit": "Train", "validate": "Measure", "test": "Measure", "predict": "Predict", "exits": "Exits"}
_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
_RISKS = (0.01, 0.02, 0.05, 0.1)
_WATCHED = 5.0
"""Seconds of steps from which an epoch's length is estimated, the first step apart, which warms up."""


@contextmanager
def told(
    verb: str, module: LayerwiseModule, data: SplitDataModule, trainer: Trainer, config: Mapping[str, Any]
) -> Iterator[None]:
    """Around a run: its first screen, and what may be typed when it has come to its end; by the first process alone."""
    speaks = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if speaks:
        weights = {"Weights": weights_told(verb, config)}
        print_facts(weights if verb == "export" else start_facts(verb, module, data, trainer, config))
    yield
    if speaks and verb != "export" and trainer.is_global_zero:
        page = Path(trainer.default_root_dir) / PAGE_FILE
        print_facts({"Page": shown(page) if page.exists() else ""})
        print_next(next_commands(verb, trainer, module, data, config.get("ckpt_path")))


def start_facts(
    verb: str, module: LayerwiseModule, data: SplitDataModule, trainer: Trainer, config: Mapping[str, Any]
) -> dict[str, str | Sequence[str]]:
    """What is run, on what data, which are set up, how large it is, and where it is kept."""
    section = config["model"]["backbone"]
    options = init_args(section)
    name = options.get("name") or options.get("name_or_path") or ""
    how = f"; objective {type(module.objective).__name__}, head {type(module.head).__name__}"
    frozen = f", {' and '.join(module.frozen)} frozen" if module.frozen else ""
    total = sum(each.numel() for each in module.parameters())
    trained = sum(each.numel() for each in module.parameters() if each.requires_grad)
    size = f"{total:,} parameters"
    if verb == "fit":
        size += ", all trained" if total == trained else f", {trained:,} of them trained"
    processes = f"{trainer.world_size} processes, " if trainer.world_size > 1 else ""
    return {
        _DOES[verb]: f"{class_of(section)} {name}".strip() + f", {module.num_layers} layers{how}{frozen}",
        "Weights": weights_told(verb, config),
        "Data": _data_told(verb, data, module, config.get("split", "val")),
        "Size": f"{size}; {processes}on {trainer.strategy.root_device.type}, precision {trainer.precision}",
        "Seed": "" if config.get("seed_everything") is None else str(config["seed_everything"]),
        "Kept in": "" if trainer.barebones else shown(Path(trainer.default_root_dir)),
    }


def weights_told(verb: str, config: Mapping[str, Any]) -> str:
    """The checkpoint that is loaded; that there is none where weights are random and nothing trains them."""
    if (path := config.get("ckpt_path")) is not None:
        return f"of {path}" if verb != "export" else ""
    return RANDOM if verb != "fit" and is_random(config["model"]["backbone"]) else ""


def _data_told(verb: str, data: SplitDataModule, module: LayerwiseModule, split: str) -> str:
    unit = "blocks of tokens" if module.backbone.reads_tokens else "samples"
    names = _SPLITS.get(verb, (split,))
    counts = ["a stream in train"] if verb == "fit" and data.stream is not None else []
    for name in (name for name in names if name in data.splits):
        counts.append(f"{len(data.splits[name]):,} {'' if counts else unit + ' '}in {name}")
    classes = None if module.backbone.reads_tokens else classes_of(data)
    parts = [", ".join(counts)] + ([] if classes is None else [f"{classes} classes"])
    parts += [f"batches of {data.batch_size}"] if verb == "fit" else []
    return f"{type(data).__name__}: {'; '.join(filter(None, parts))}"


class EpochTime(Callback):
    """Says once how long an epoch takes: estimated from its first seconds, or, where it is shorter, measured."""

    def __init__(self) -> None:
        self._told = False
        self._began = self._watched = 0.0
        self._steps = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        now, batches = time.monotonic(), trainer.num_training_batches
        self._watched = self._watched or now
        spent = now - self._watched
        if not self._told and spent >= _WATCHED and batches < float("inf"):
            how = f"without its validation ({self._steps} of its {batches} steps took {spent:.0f} s)"
            self._tell(trainer, spent / self._steps * batches, how)
        self._steps += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer, time.monotonic() - self._began, "with its validation (the first one did)")

    def _tell(self, trainer: Trainer, seconds: float, how: str) -> None:
        if not self._told:
            self._told = True
            by_epochs = trainer.max_epochs is not None and trainer.max_epochs > 0 and trainer.max_steps < 0
            left = (trainer.max_epochs or 0) - trainer.current_epoch if by_epochs else 0
            whole = f"; {left} epochs about {age(math.ceil(left * seconds))}" if left > 1 else ""
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                print_facts({"Time": f"an epoch takes about {age(math.ceil(seconds))}, {how}{whole}."})


def next_commands(
    verb: str, trainer: Trainer, module: LayerwiseModule, data: SplitDataModule, weights: str | None
) -> dict[str, list[str]]:
    """Two commands that go on from a run, by what they do; none where there is no checkpoint to go on from."""
    home = Path(trainer.default_root_dir)
    if verb == "fit":
        saved = [call for call in trainer.checkpoint_callbacks if isinstance(call, ModelCheckpoint)]
        paths = [home / LAST, *(Path(call.best_model_path) for call in saved if call.best_model_path)]
        weights = next((shown(path) for path in paths if path.exists()), None)
    if weights is None or verb == "predict":
        return {}
    lens = {"What is readable, recoverable and known at each layer": ["layersim", "lens", f"--ckpt_path={weights}"]}
    if module.backbone.reads_tokens or verb == "exits":  # of a language model exits promise nothing
        return lens
    return exits_command(weights, len(data.splits["val"])) | lens


def exits_command(weights: str, samples: int) -> dict[str, list[str]]:
    """Early exit with the least of usual risks that so many samples can promise; nothing where they promise none."""
    for risk in _RISKS:
        with suppress(UserError):
            check_promise(samples, target=risk, risk="error", confidence=0.95, method="ltt")
            words = ["layersim", "exits", f"--ckpt_path={weights}", f"--risk={risk}"]
            return {"Where samples may leave early, with a promise": words}
    return {}
