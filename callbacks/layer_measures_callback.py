"""The layers of what Hugging Face's Trainer evaluates. Letters: N samples."""

import inspect
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.state import GradientState
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.console import Console
from torch import Tensor, nn
from transformers import TrainerCallback

from callbacks.figures import Figure, Figures
from callbacks.layer_measures import LayerMeasures
from callbacks.loggers import Moment, dispensable, logged, send_outcome
from callbacks.measures_by_name import Measures
from callbacks.tapped_module import LABELS, named_parts
from layersim.errors import UserError
from layersim.report.page import PAGE_FILE, write_page
from layersim.report.records import LayerRecord, Stage
from layersim.report.table import layer_table

_STEP = "train/global_step"
"""What W&B's charts of a Trainer are drawn along."""


class LayerMeasuresCallback(TrainerCallback):  # type: ignore[misc]  # transformers' types are noise
    """Measures the layers at each evaluation of transformers' Trainer, one of whose `callbacks` it is.

    It reads the very forward passes that the Trainer makes, and keeps a record as Lightning's `RunRecorder` does:
    `layers.jsonl` and `figures/` in the output directory, `report.html` when the training ends; W&B gets numbers and
    figures where `report_to` names it. `predict` is recorded as a test where there are labels. Of several evaluation
    sets each has a folder of its name. What another run has left in the directory is not touched.

    Nothing grows with the data, but what `compute_metrics` asks the Trainer to gather. On several processes the samples
    with which accelerate fills the last batch count once.

    Args:
        layers: see LayerMeasures, as for `measures`; those of a transformers model are found where None.
        measures: what is measured.
        directory: where the record is kept; the Trainer's `output_dir` where None.
        **named: `pool`, `layout`, `norm`, `head` and `label`, which belong to `layers`.
    """

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        measures: Measures = None,
        *,
        directory: str | Path | None = None,
        **named: Any,
    ) -> None:
        named_parts(layers, **named)  # refuses at once what the Trainer would meet later
        self.directory = directory
        self._options: dict[str, Any] = {"layers": layers, "measures": measures, **named}
        self._model: nn.Module | None = None
        self._hooks: list[Any] = []
        self._figures = Figures()
        self._written: dict[Path, tuple[LayerRecord, Moment]] = {}
        self._is_training = self._has_trained = False
        self._resumed_at = 0
        self._begun: Any = None

    def _start(self) -> None:
        """Before an evaluation's first batch."""
        self.measures.reset()
        self._read: Any = None
        self._given: list[str] = []
        self._passed = 0
        self._unlabelled = False

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._attach(args, model)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self._has_trained:
            self._model = None  # what is written from now on is another run
        self._attach(args, model)
        self._is_training, self._has_trained, self._resumed_at = True, True, state.global_step
        if args.eval_strategy == "no":
            warnings.warn(
                "LayerMeasuresCallback measures at evaluations, and there are none while this trains: set "
                "eval_strategy of the TrainingArguments, such as to epoch.",
                stacklevel=2,
            )

    def _attach(self, args: Any, model: nn.Module) -> None:
        """Listens to this model, which a Trainer may make anew."""
        if model is self._model:
            return
        for option in ("fsdp", "deepspeed", "torch_compile"):
            if getattr(args, option, None):
                raise UserError(f"LayerMeasuresCallback reads whole layers as they run: leave {option} out.")
        if args.n_gpu > 1:
            raise UserError("LayerMeasuresCallback cannot follow DataParallel: start one process a device (torchrun).")
        self.measures = LayerMeasures(model, **self._options)
        if args.label_smoothing_factor and self.measures.needs_labels:
            raise UserError(
                "With label_smoothing_factor the Trainer keeps the labels from the model, and no accuracy of its "
                'layers can be measured. Leave it out, or measure features alone: measures=["cka", "geometry"].'
            )
        config = getattr(model, "config", None)
        kind = "regression" if getattr(config, "num_labels", 0) == 1 else getattr(config, "problem_type", None)
        if self.measures.needs_labels and kind in ("regression", "multi_label_classification"):
            raise UserError(
                f"Layers have an accuracy where each sample has one class, but this model is for {kind}: measure "
                'features alone, measures=["cka", "geometry"].'
            )
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]
        self._model, self._args = model, args
        self._start()

    def _before(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A forward pass begins; the last one in evaluation before the Trainer ends its step is what counts."""
        self._read = None
        if model.training or torch.is_grad_enabled() or named.get("past_key_values") is not None:
            return
        placed = inspect.signature(model.forward).bind_partial(*inputs).arguments if inputs else {}
        batch = {key: value for key, value in {**placed, **named}.items() if value is not None}
        self._given = [*batch]
        if self.measures.needs_labels and not {self._options.get("label"), *LABELS} & {*batch}:
            return
        samples = next((len(each) for each in batch.values() if isinstance(each, Tensor) and each.ndim), 0)
        first = self._passed + self._args.process_index * samples
        batch["position"] = first + torch.arange(samples)
        with self._kept():
            self.measures.reader.open(batch)
            self._read = batch

    def _after(self, model: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        if not isinstance(self._read, dict):
            return
        args, batch = self._args, self._read
        kind = next(model.parameters()).device.type
        dtype = torch.bfloat16 if args.bf16 else torch.float16
        with self._kept(), torch.autocast(kind, dtype, enabled=bool(args.bf16 or args.fp16)):  # as the forward is run
            self._read = self.measures.reader.read(batch, below=self._samples_of_all()), batch

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Keeps what is refused until the Trainer's step ends: a call that is not the Trainer's goes on."""
        try:
            yield
        except UserError as error:
            self._read = error

    def _samples_of_all(self) -> int | None:
        """How many samples there are up to here, where the last batch of all processes is filled up with others."""
        loader = GradientState()
        if self._args.world_size == 1 or not loader.end_of_dataloader:
            return None
        if loader.remainder < 0 and not self._args.dataloader_drop_last:
            rank_zero_warn("accelerate does not tell how many samples there are: the last batch's may count twice.")
        if loader.remainder <= 0:
            return None
        return self._passed + int(loader.remainder)

    def on_prediction_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self._model is None:
            raise UserError("Give LayerMeasuresCallback to the Trainer as it is made: Trainer(…, callbacks=[…]).")
        loader, reading = kwargs.get("eval_dataloader"), GradientState()
        begun = loader, reading.dataloader_references.count(loader)  # one that broke off has not ended there
        if begun != self._begun:
            self._forget()
        self._begun = None if reading.end_of_dataloader and reading.active_dataloader is loader else begun
        if self._read is None:
            self._unlabelled = True
            if self._is_training:
                raise self._no_labels()
            return
        if isinstance(self._read, UserError):
            raise self._read
        (output, batch), self._read = self._read, None
        self.measures.same_keys(batch)
        self._passed += len(batch["position"]) * args.world_size
        if output is not None:
            self.measures.take(output)

    def _forget(self) -> None:
        """Forgets an evaluation that broke off, behind which the first batch of another one has come."""
        read, given, before = self._read, self._given, self._passed
        if not before and not self._unlabelled:
            return
        self._start()
        self._read, self._given = read, given
        if isinstance(read, tuple) and (output := read[0]) is not None and output.features.position is not None:
            output.features.position = output.features.position - before * self.measures.reader.positions_each

    def _no_labels(self) -> UserError:
        return UserError(
            f"The Trainer gives the model {', '.join(self._given) or 'nothing'} and no labels in evaluation, so that "
            "no accuracy of its layers can be measured. Give the evaluation data labels, leave compute_loss_func out, "
            'or measure features alone: measures=["cka", "geometry"].'
        )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if self._unlabelled:
            raise self._no_labels()
        ends = ("_runtime", "_samples_per_second")  # the Trainer's own; a metric may be called model_runtime
        prefixes = (key.removesuffix(ends[0]) for key in metrics or () if key.endswith(ends[0]))
        prefix = next((each for each in prefixes if each + ends[1] in metrics), "eval")
        name = "" if prefix == "eval" else prefix.removeprefix("eval_")
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise UserError(f"The record of {prefix!r} lies in a folder of this name: change metric_key_prefix.")
        self._finish(args, state, "validate", name)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if self._unlabelled:
            rank_zero_info("These predictions have no labels, so that layers are not measured.")
        else:
            self._finish(args, state, "test", "")

    def _finish(self, args: Any, state: Any, stage: Stage, name: str) -> None:
        epoch = max(0, math.ceil(state.epoch or 0) - 1)  # the Trainer counts what has passed
        folder = Path(self.directory or args.output_dir) / name
        if state.is_world_process_zero:
            folder = self.measures.home(folder, self._resumed_at)
        wandb = sys.modules.get("wandb") if "wandb" in args.report_to and state.is_world_process_zero else None
        run = _TrainersRun(wandb.run, stage, name) if wandb is not None and wandb.run is not None else None
        within = args.eval_strategy == "steps"
        moment = Moment(str(folder), epoch, state.global_step, within, [] if run is None else [run])
        record = self.measures.write_record(moment, stage, self._figures)
        if run is not None:
            run.log_numbers(record)
        if state.is_world_process_zero:
            self._written[folder] = record, moment
        self._start()
        if not self._is_training:
            self._conclude()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._is_training = False
        self._conclude()

    def _conclude(self) -> None:
        """Pages and tables, and the figures that are left."""
        for folder, (record, moment) in self._written.items():
            self._figures.finish(moment)
            with dispensable("The page", folder):
                write_page([folder], folder / PAGE_FILE, stage=record.stage)
                for run in moment.loggers:
                    send_outcome(run.run, folder / PAGE_FILE, record.quantities)
            console = Console()
            console.print()  # behind the Trainer's bar, which is still open
            console.print(layer_table(record))
            console.print(f"Records and figures: {folder}", soft_wrap=True)
        self._written = {}


class _TrainersRun:
    """The W&B run that the Trainer reports to."""

    def __init__(self, run: Any, stage: Stage, name: str) -> None:
        self.run = run
        self.prefix = ("eval/" if stage == "validate" else "test/") + (f"{name}/" if name else "")

    def log_numbers(self, record: LayerRecord) -> None:
        numbers = {f"{self.prefix}{name}": value for name, value in logged(record.quantities)}
        self.run.log(numbers | {_STEP: record.step})

    def log_figure(self, figure: Figure) -> None:
        import wandb

        name = self.prefix + figure.name.partition("/")[2]
        self.run.log({name: wandb.Image(str(figure.path)), _STEP: figure.step})
