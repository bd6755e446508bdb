"""The run's own record, whatever loggers are on, and the page made of it when the run ends."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console

from callbacks.evaluation import EvaluationCallback, data_module, layerwise
from callbacks.loggers import dispensable, log_outcome, make_directory
from layersim.errors import UserError
from layersim.evaluation import reduced
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.report.page import PAGE_FILE, write_page
from layersim.report.quantity import Quantity
from layersim.report.records import RECORDS_FILE, LayerRecord, Stage, append_record, read_records
from layersim.report.table import layer_table
from layersim.runs.directory import reserve
from layersim.runs.rehearsal import STAGES, logged_names


class RunRecorder(EvaluationCallback):
    """Writes a line of `layers.jsonl` after each validation and test epoch, and the table of the last one at the end.

    The line holds what the trainer's callbacks publish: every `quantities` that one has, of `Quantity` by name. A
    checkpoint carries the lines so far, so that a resumed run's file tells the whole training. Where another run's
    record lies in the trainer's directory, as when a script runs again, this run is kept in a new directory below it.
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
        if isinstance(pl_module, LayerwiseModule) and stage in STAGES:
            # Refuses one name of two callbacks before anything is trained.
            logged_names(trainer.callbacks, pl_module, stage=STAGES[stage])  # type: ignore[attr-defined]
        root = Path(trainer.default_root_dir).absolute()
        again = stage == "fit" and not trainer.global_step and any(record.step for record in self.records)
        if is_other := root != self._home or again:
            self.records = []  # of another run; a resumed one's come later
        if is_other and trainer.strategy.broadcast(_path(trainer).exists()):
            own = trainer.strategy.broadcast(str(reserve(root.parent, root.name)) if trainer.is_global_zero else "")
            rank_zero_info(f"{root} holds an earlier run, so that this one is kept in {own}.")
            trainer._default_root_dir = own  # type: ignore[attr-defined]
        self._home = Path(trainer.default_root_dir).absolute()
        make_directory(trainer)

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
        samples = reduced(torch.tensor(self._samples, device=pl_module.device), "sum")
        publishing = [call for call in trainer.callbacks if hasattr(call, "quantities")]  # type: ignore[attr-defined]
        counted = next((call for call in publishing if getattr(call, "num_samples", 0)), None)
        ours = isinstance(pl_module, LayerwiseModule) or counted is None
        layers = layerwise(pl_module).num_layers if ours else counted.num_layers  # type: ignore[union-attr]
        record = LayerRecord(
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            stage=stage,
            layers=layers,
            samples=int(samples) or getattr(counted, "num_samples", 0),  # the model's own reading is what counts
            left_out=getattr(data_module(trainer), "left_out", 0),
            unit="tokens" if isinstance(pl_module, LayerwiseModule) and pl_module.backbone.reads_tokens else "samples",
            quantities=published(publishing),
        )
        self.records.append(record)
        if trainer.is_global_zero:
            Path(trainer.default_root_dir).stat()  # raises where it was deleted meanwhile: it is not made again
            append_record(_path(trainer), record)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "predict" or not trainer.is_global_zero or not self.records:
            return  # prediction measures nothing: the records are those of the checkpoint
        if bar := trainer.progress_bar_callback:
            bar.teardown(trainer, pl_module, stage)  # a bar that still lives would paint over what is printed
        console = Console()
        console.print(layer_table(self.records[-1]))
        console.print(f"Records and figures: {trainer.default_root_dir}", soft_wrap=True)


class ReportWriter(Callback):
    """Writes `report.html`, which opens in any browser, into the run's directory at the end of training or testing.

    W&B gets the page as an artifact, and the last measurements as a table.
    """

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        records = _path(trainer)
        if not trainer.is_global_zero or not records.exists() or not (read := read_records(records)):
            return
        page = records.with_name(PAGE_FILE)
        with dispensable("The page", page.parent):
            write_page([page.parent], page, stage=read[-1].stage)
            log_outcome(trainer, page, read[-1].quantities)


def _path(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / RECORDS_FILE


def published(callbacks: Iterable[Any]) -> dict[str, Quantity]:
    """What all of them measured, by name.

    Raises:
        UserError: two published one name.
    """
    found: dict[str, Quantity] = {}
    for callback in callbacks:
        own = callback.quantities or {}
        if not isinstance(own, Mapping):
            raise UserError(
                f"Expected the quantities of {type(callback).__name__} by their names, but got a {type(own).__name__}."
            )
        if twice := sorted(found.keys() & own.keys()):
            raise UserError(
                f"Two callbacks measure {', '.join(twice)}, but a run's record holds one of each name: give measures "
                "names of their own, or leave one callback out."
            )
        found |= own
    return found
