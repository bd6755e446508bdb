"""The run's own record, whatever loggers are on."""

import math
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console

from callbacks.evaluation import EvaluationCallback, layerwise
from callbacks.monitor import LayerMonitor
from callbacks.similarity_heatmaps import SimilarityHeatmaps, default_measures
from layersim.errors import UserError
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.report.records import RECORDS_FILE, EffectiveDepth, LayerRecord, Stage, append_record
from layersim.report.table import layer_table
from layersim.runs.directory import reserve


class RunRecorder(EvaluationCallback):
    """Writes a line of `layers.jsonl` after each validation and test epoch, and the table of the last one at the end.

    The line holds what the trainer's monitors measured, each under names of its own. A checkpoint carries the lines so
    far, so that a resumed run's file tells the whole training. Where another run's record lies in the trainer's
    directory, as when a script runs again, this run is kept in a new directory below it.
    """

    def __init__(self) -> None:
        self.records: list[LayerRecord] = []
        self._samples = 0
        self._home: Path | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"lines": [record.to_line() for record in self.records]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.records = [LayerRecord.from_line(line) for line in state_dict["lines"]]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        heatmaps = [call for call in trainer.callbacks if isinstance(call, SimilarityHeatmaps)]  # type: ignore[attr-defined]
        names = [name for one in heatmaps for name in one.measures or default_measures(grouped=True)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(
                f"Two SimilarityHeatmaps measure {', '.join(twice)}, but a run's record holds one of each name: give "
                "measures names of their own."
            )
        root = Path(trainer.default_root_dir).absolute()
        if root != self._home and trainer.strategy.broadcast(_path(trainer).exists()):
            own = trainer.strategy.broadcast(str(reserve(root.parent, root.name)) if trainer.is_global_zero else "")
            rank_zero_info(f"{root} holds an earlier run, so that this one is kept in {own}.")
            trainer._default_root_dir = own  # type: ignore[attr-defined]
        self._home = Path(trainer.default_root_dir).absolute()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = _path(trainer)
        if trainer.is_global_zero and not path.exists():
            for record in self.records:
                append_record(path, record)

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._samples = 0

    def take(self, output: Any, batch: Any) -> None:
        if isinstance(output, LayerOutput):
            self._samples += output.features.values.shape[1]

    def end(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        samples = trainer.strategy.reduce(torch.tensor(self._samples, device=pl_module.device), reduce_op="sum")
        records = [monitor.record for monitor in trainer.callbacks if isinstance(monitor, LayerMonitor)]  # type: ignore[attr-defined]
        if isinstance(pl_module, LayerwiseModule) or not any("layers" in record for record in records):
            records.append({"layers": layerwise(pl_module).num_layers})
        measured: dict[str, Any] = reduce(_joined, records, {})
        measured["samples"] = int(samples) or measured.get("samples", 0)  # the model's own reading is what counts
        if isinstance(pl_module, LayerwiseModule) and pl_module.backbone.reads_tokens:
            measured["unit"] = "tokens"
        if depth := measured.get("effective_depth"):
            measured["effective_depth"] = EffectiveDepth(**depth)
        record = LayerRecord(epoch=trainer.current_epoch, step=trainer.global_step, stage=stage, **measured)
        self.records.append(record)
        if trainer.is_global_zero:
            append_record(_path(trainer), record)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.is_global_zero or not self.records:
            return
        if bar := trainer.progress_bar_callback:
            bar.teardown(trainer, pl_module, stage)  # a bar that still lives would paint over what is printed
        console = Console()
        console.print(layer_table(self.records[-1]))
        console.print(f"Records, figures and checkpoints: {trainer.default_root_dir}", soft_wrap=True)


def _path(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / RECORDS_FILE


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """What two monitors recorded; of a dictionary that is in both, the entries of both.

    Raises:
        UserError: they measured different values of the same name.
    """
    joined = first | second
    for key in first.keys() & second.keys():
        if isinstance(first[key], dict):
            joined[key] = _joined(first[key], second[key])
        elif key != "samples" and not _same(first[key], second[key]):
            raise UserError(
                f"Two callbacks measured {key}, {first[key]} and {second[key]}, but a run's record holds one: give "
                "measures names of their own, and measure another number of layers in a run of its own."
            )
    return joined


def _same(first: Any, second: Any) -> bool:
    """Whether two measured values are equal; NaN is NaN's equal."""
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second) or all(isinstance(one, float) and math.isnan(one) for one in (first, second))
