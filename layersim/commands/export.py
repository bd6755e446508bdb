"""`layersim export`: a model of its own, which needs no layersim."""

import copy
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console

from layersim import export
from layersim.backbones import Backbone
from layersim.commands.collecting import evaluate_epoch, quiet_trainer
from layersim.data import SplitDataModule
from layersim.data.inputs import Inputs
from layersim.errors import UserError, at_least, check_choice, check_share
from layersim.export.exporting import Format
from layersim.export.removal import Criterion
from layersim.heads import Head, SharedHead
from layersim.metrics import LayerAccuracy
from layersim.metrics.effective_depth import effective_depth
from layersim.module import LayerwiseModule
from layersim.report.exits import ExitReport
from layersim.runs.checkpoints import check_fits, class_names_of, read_checkpoint
from layersim.runs.class_names import check_same_classes, head_classes
from layersim.runs.models import check_kind
from layersim.runs.serving import PRECISIONS, early_exit_of, serving_of


def export_model(
    model: LayerwiseModule,
    datamodule: SplitDataModule,
    to: Path,
    trainer: Trainer | None = None,
    ckpt_path: str | None = None,
    layers: int | None = None,
    tolerance: float | None = None,
    remove: int | None = None,
    criterion: Criterion = "angular",
    replace: Literal["linear"] | None = None,
    removal_batches: int = 50,
    exits: Path | None = None,
    format: Format = "stock",
    overwrite: bool = False,
) -> Path:
    """Write a model of its own: whole, cut to its first layers, or without the blocks that matter least.

    What is written needs no layersim: a folder that timm or transformers loads, an ONNX file, or a program for
    `torch.export.load`, each with a README of the lines that load it.

    Args:
        model: the model.
        datamodule: its data; read only for `tolerance` and `remove`.
        to: the folder to make.
        trainer: its device and precision are used for `tolerance`.
        ckpt_path: the checkpoint to load; the model as it is where None.
        layers: keep the first so many, 1 … L.
        tolerance: keep the model's effective depth on the validation split: the fewest layers whose accuracy is
            within this of the best layer's, such as 0.01.
        remove: leave out this many consecutive blocks, those that change features least on training data; what it
            costs is measured on the validation split. The first block always stays.
        criterion: how change is measured: the `angular` distance of what goes into the blocks to what comes out
            (arXiv 2403.17887), or the blocks' `influence` (arXiv 2403.03853).
        replace: what stands in for the blocks that `remove` leaves out: `linear`, a map estimated on training data and
            folded into the weights of the block before (arXiv 2505.02819); nothing where None.
        removal_batches: training batches that `remove` looks at.
        exits: the `exits.json` of `layersim exits`, or its run's directory. With `--format onnx` the file computes no
            layer behind the one at which the last sample of its batch leaves; a stock checkpoint carries the exits for
            `EarlyExit.load`.
        format: `stock`, `onnx` or `torch`.
        overwrite: replace an export that stands there.

    Returns:
        What was written.

    Raises:
        UserError: more than one of layers, tolerance and remove; an option of remove without it; a number out of its
            range; a destination that exists; a model that cannot be written so.
    """
    if sum(option is not None for option in (layers, tolerance, remove)) > 1:
        raise UserError("Expected at most one of --layers, --tolerance and --remove, but got several.")
    if remove is None and (replace, criterion, removal_batches) != (None, "angular", 50):
        raise UserError("--replace, --criterion and --removal_batches are of --remove. Set it, or leave them out.")
    at_least(1, "--removal_batches", removal_batches)
    check_choice("format", format, Format)
    check_choice("replace", replace, Literal["linear"] | None)
    check_choice("criterion", criterion, Criterion)
    trainer = trainer or quiet_trainer()
    if trainer.world_size > 1:
        raise UserError("A model is exported by one process. Set --trainer.devices=1.")
    if tolerance is not None:
        check_share("--tolerance", tolerance, zero=True, one=True)
    export.check_destination(to, overwrite)
    if exits is not None and (format == "torch" or (layers, tolerance, remove) != (None, None, None)):
        raise UserError(
            "A model with exits is written whole: as ONNX, which can branch where its last sample has left (what "
            "torch.export follows of a model's own forward is one path), or as a stock checkpoint for EarlyExit.load. "
            "Set --format=onnx or stock, and leave --layers, --tolerance and --remove out."
        )
    report = None if exits is None else _report_at(exits, model, format)
    checkpoint: dict[str, Any] = {}
    if ckpt_path is not None:
        checkpoint = read_checkpoint(ckpt_path)
        check_fits(checkpoint["state_dict"], model, ckpt_path)
        model.load_state_dict(checkpoint["state_dict"])
    backbone, head = model.backbone, model.head
    own = class_names_of(checkpoint) or [] if checkpoint else head_classes(backbone)
    kept: int | list[int] = model.num_layers if layers is None else layers
    told = f"{kept} of {model.num_layers} layers"
    if tolerance is not None or remove is not None:
        check_kind(backbone, datamodule)
        datamodule.check(backbone)
        check_same_classes(own, datamodule)
    if tolerance is not None:
        (accuracies,) = evaluate_epoch(trainer, model, datamodule, LayerAccuracy(model.num_layers))
        if (depth := effective_depth(accuracies.tolist(), tolerance)) is None:
            raise UserError("--tolerance asks for accuracies, but no validation sample was read. Give --layers.")
        kept = depth
        told = f"{kept} of {model.num_layers} layers, the fewest within {tolerance:g} of the best layer's accuracy,"
    elif remove is not None:
        kept, backbone, head = _without_blocks(model, datamodule, remove, criterion, replace, removal_batches)
        told = f"layers {[layer + 1 for layer in kept]}"
    names = own or datamodule.class_names
    named = names if names and len(names) == backbone.num_classes else None
    inputs = _inputs(datamodule, backbone)
    serving = serving_of(report, datamodule, inputs, named, stock=format == "stock")
    if report is not None:
        told = "all layers with their exits"
        casts = PRECISIONS.get(report.precision, (None, None))[0] is not None
        served = copy.deepcopy(model) if casts else model  # the caller's own stays as it is
        early_exit = early_exit_of(report, served, told=str(exits), inputs=inputs)
        backbone, head = early_exit.backbone, early_exit.head
    if report is not None and format == "onnx":
        path = export.export_leaving(early_exit, to, serving=serving, overwrite=overwrite)
    else:
        path = export.export_as(format, backbone, head, kept, to, serving=serving, overwrite=overwrite)
    print(f"Exported {told} to {path}; its README.md says how to load it.")
    return path


def _without_blocks(
    model: LayerwiseModule,
    datamodule: SplitDataModule,
    blocks: int,
    criterion: Criterion,
    replace: Literal["linear"] | None,
    batches: int,
) -> tuple[list[int], Backbone, Head]:
    """The layers that stay, 0 … L − 1, and the backbone and head that they are taken from."""
    pair = model.backbone, model.head
    changes = export.feature_changes(model.backbone, islice(datamodule.train_dataloader(), batches), criterion)
    removal = export.propose_removal(changes, blocks, criterion)
    if replace is not None:
        pair = export.replace_linear(*pair, removal, islice(datamodule.train_dataloader(), batches))
    trial = export.try_removal(
        model.backbone, model.head, removal, datamodule.val_dataloader(), pair if replace is not None else None
    )
    told = (
        f"Without blocks {removal.first} … {removal.last}, whose removal changes features least "
        f"({criterion} {removal.change:.4f}), on {trial.samples} samples: "
        f"loss {trial.whole.loss:.4f} → {trial.measured.loss:.4f} (predicted {trial.predicted.loss:.4f}), "
        f"accuracy {trial.whole.accuracy:.4f} → {trial.measured.accuracy:.4f} "
        f"(predicted {trial.predicted.accuracy:.4f})."
    )
    if trial.replaced is not None:
        loss, accuracy = trial.replaced.loss, trial.replaced.accuracy
        told += f" With a linear map in their place: loss {loss:.4f}, accuracy {accuracy:.4f}."
    Console().print(told)
    return removal.kept, *pair


def _report_at(place: Path, model: LayerwiseModule, format: str) -> ExitReport:
    """The threshold in an `exits.json` or a run's directory."""
    report = ExitReport.read(place)
    if report is None:
        raise UserError(f"There is no {ExitReport.FILE} at {place}: `layersim exits` writes it. Change --exits.")
    if report.threshold is None or report.layers != model.num_layers:
        what = "lets no sample leave early" if report.threshold is None else f"is of a model of {report.layers} layers"
        raise UserError(f"{place} {what} by the policy {report.policy}, and fits nothing to write. Change --exits.")
    if format == "onnx" and report.precision not in ("32-true", "64-true"):
        raise UserError(
            f"The threshold in {place} was chosen in {report.precision}, whose scores are not those of an ONNX file in "
            "float32. Run `layersim exits` with --trainer.precision=32-true."
        )
    if format == "stock" and type(model.head) is not SharedHead:
        raise UserError(
            f"A stock checkpoint has one classifier, and exits of {type(model.head).__name__} need those of all "
            "layers. Set --format=onnx."
        )
    return report


def _inputs(datamodule: SplitDataModule, backbone: Backbone) -> Inputs | None:
    """What makes a classifier's batches of texts or images, where the data can tell and are of the model's kind."""
    if backbone.reads_tokens:
        return None
    try:
        inputs = datamodule.inputs(backbone)
    except UserError as error:
        rank_zero_info(f"The export does not tell how its inputs are made: {error}")
        return None
    size = backbone.input_size and backbone.input_size[1:]
    return inputs if getattr(inputs, "size", None) == size else None
