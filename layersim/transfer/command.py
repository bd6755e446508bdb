"""`layersim transfer --ckpt_path MODEL`: what do a model's layers know of shifted images, and of another task?"""

from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from layersim.across import Source, open_module, read_features, read_source
from layersim.across.features import fitted_split
from layersim.across.options import add_reading_options, made, parse, print_outcome, typed
from layersim.commands.parser import Parser
from layersim.data import SplitDataModule
from layersim.data.splits import Integers
from layersim.errors import UserError
from layersim.module import LayerwiseModule
from layersim.report.drawing.canvas import save_figure
from layersim.report.transfer import TransferReport, transfer_figure, transfer_table, write_transfer_report
from layersim.transfer.probe import linear_probe
from layersim.transfer.shifts import STRENGTHS, check_strengths, shifted_accuracies

FIGURE_FILE = "transfer.png"

_TASK = "the probe (--to_data)"

_UNITS = {
    "rotation": "Degrees that images are turned by",
    "noise": "Standard deviations of the noise, on normalised pixels",
    "blur": "Widths σ of the blur, as shares of the image's width",
}


def main(args: list[str]) -> int:
    """Runs the command with what stands behind `layersim transfer`; 0 when all went well."""
    parser, source, options = _parse(args)
    directory = _directory(source, options.to)
    module = open_module(source, device=options.device)
    if module.backbone.reads_tokens:
        raise UserError("Transfer is for classifiers, but this model predicts tokens. Change --ckpt_path.")
    given = made(parser, options)
    strengths = {kind: values for kind, values in options.strengths.as_dict().items() if values}
    shifting = module.backbone.input_size is not None and bool(strengths)
    if not shifting and given.to_data is None:
        raise UserError("Nothing to measure: shifts are for models of images. Set --to_data for a linear probe.")
    if shifting:  # all that is asked for is checked before anything is measured
        check_strengths(strengths, module.backbone.input_size)
        _require_split(given.data, options.split)
        given.data.check(module.backbone)
    if given.to_data is not None:
        _check_task(module, given.to_data, options.split)
    accuracy: list[float] | None = None
    shifts: dict[str, list[dict[str, Any]]] = {}
    if shifting:
        accuracy, shifts = shifted_accuracies(module, given.data, options.split, strengths, seed=options.seed)
    report = TransferReport(
        model=source.given,
        layers=module.num_layers,
        split=options.split,
        data=options.data.as_dict(),
        samples=len(given.data.splits[options.split]) if shifting else 0,
        accuracy=accuracy,
        shifts=shifts,
        probe=None if given.to_data is None else _probe(module, given.to_data, options),
    )
    save_figure(transfer_figure(report), directory / FIGURE_FILE)
    print_outcome(transfer_table(report), write_transfer_report(directory, report), directory / FIGURE_FILE)
    return 0


def _parse(args: list[str]) -> tuple[ArgumentParser, Source, Namespace]:
    """The parser, the model, and all options; where no data are typed, those that the model was trained on."""
    model = typed(args, "ckpt_path")["ckpt_path"]
    source = None if model is None else read_source(model)
    parser = _parser()
    options = parse(parser, args, [source.data] if source is not None and source.data else [])
    assert source is not None  # --ckpt_path is required
    if source.state is None:
        raise UserError(f"Expected a run's directory, or a checkpoint (….ckpt), but got --ckpt_path {source.given}.")
    if options.data is None:
        raise UserError("The model does not tell its data. Set --data, such as --data=Digits.")
    return parser, source, options


def _parser() -> ArgumentParser:
    parser = Parser(
        prog="layersim transfer",
        description="Measure a trained model's layers on shifted images (its own head), and on another task (a linear "
        "probe on frozen features); writes transfer.json and transfer.png into the run's directory, over older ones.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--ckpt_path", type=str, required=True, metavar="MODEL", help="A run's directory, or a checkpoint."
    )
    parser.add_subclass_arguments(
        SplitDataModule, "data", required=False, help="Images to shift; where left out, those it was trained on."
    )
    parser.add_subclass_arguments(
        SplitDataModule, "to_data", required=False, help="Another task for linear probes; where left out, none."
    )
    add_reading_options(
        parser,
        samples="Samples of a split to probe at most.",
        seed="Of the noise, and of the samples that choose a penalty.",
    )
    for kind, strengths in STRENGTHS.items():
        parser.add_argument(
            f"--strengths.{kind}", type=list[float], default=list(strengths), help=f"{_UNITS[kind]}; [] for none."
        )
    parser.add_argument("--to", type=str | None, default=None, metavar="DIR", help="A directory in place of the run's.")
    return parser


def _probe(module: LayerwiseModule, data: SplitDataModule, options: Namespace) -> dict[str, Any]:
    """A linear probe on each layer's features, fitted to the training split of other data."""
    fitted, tested = (
        read_features(module.backbone, data, split=split, max_samples=options.max_samples, name=f"{split} of --to_data")
        for split in ("train", options.split)
    )
    targets, test_targets = (side.identity[:, 1].numpy() for side in (fitted, tested))
    probes = [
        linear_probe(train.double().numpy(), targets, test.double().numpy(), test_targets, seed=options.seed)
        for train, test in zip(fitted.values, tested.values, strict=True)
    ]
    return {
        "data": options.to_data.as_dict(),
        "classes": len(np.unique(targets)),
        "train_samples": len(targets),
        "samples": len(test_targets),
        "penalty": [probe.penalty for probe in probes],
        "accuracy": [probe.accuracy for probe in probes],
    }


def _check_task(module: LayerwiseModule, data: SplitDataModule, split: str) -> None:
    """Refuses other data that the model cannot read, or that have nothing to probe."""
    for name in ("train", split):
        fitted_split(module.backbone, data, name, _TASK)
        if len(np.unique(_require_split(data, name))) < 2:
            raise UserError(f"A probe needs two classes or more, but the {name} split of --to_data has one.")


def _require_split(data: SplitDataModule, split: str) -> Integers:
    """The labels of a split that is to be measured."""
    data.setup()
    if split not in data.splits:
        raise UserError(f"The data have no {split} split: set {data.test_option}, or --split val.")
    labels = data.splits[split].labels
    if labels is None:
        raise UserError(f"Accuracy needs labels, but the {split} split has none. Choose other data.")
    return labels


def _directory(source: Source, to: str | None) -> Path:
    """The run's own, unless another was given."""
    if to is not None:
        try:
            Path(to).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"The directory {to} cannot be made: {error}. Change --to.") from error
        return Path(to)
    path = Path(source.given).expanduser().resolve()
    directory = path if path.is_dir() else path.parent.parent
    if not path.is_dir() and path.parent.name != "checkpoints":
        raise UserError(f"{source.given} lies in no run's directory. Set --to, a directory for what comes out.")
    return directory
