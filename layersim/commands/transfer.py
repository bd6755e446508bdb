"""`layersim transfer --ckpt_path MODEL`: what do a model's layers know of shifted images, and of another task?

Letter: L layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersim.commands.reading import ReadingParser, make_directory, peek, print_outcome, reading_parser
from layersim.errors import UserError

if TYPE_CHECKING:
    from layersim.data import SplitDataModule
    from layersim.data.splits import Integers
    from layersim.module import LayerwiseModule
    from layersim.report.transfer import TransferReport

FIGURE_FILE = "transfer.png"
STRENGTHS: dict[str, Sequence[float]] = {
    "rotation": (10.0, 20.0, 30.0, 45.0, 60.0),
    "noise": (0.1, 0.25, 0.5, 0.75, 1.0),
    "blur": (0.02, 0.04, 0.06, 0.09, 0.12),
}
_UNITS = {
    "rotation": "Degrees that images are turned by",
    "noise": "Standard deviations of the noise, on normalised pixels",
    "blur": "Widths σ of the blur, as shares of the image's width",
}
_TASK = "the probe (--to_data)"


def transfer(
    module: "LayerwiseModule",
    data: "SplitDataModule",
    to_data: "SplitDataModule | None" = None,
    *,
    strengths: Mapping[str, Sequence[float]] = STRENGTHS,
    split: str = "val",
    max_samples: int = 4096,
    seed: int = 0,
) -> "TransferReport":
    """A trained classifier's layers on shifted images, by its own head, and on another task, by linear probes.

    Args:
        module: a classifier, on its device.
        data: images to shift; not read for models of texts.
        to_data: another task for a linear probe on each layer's frozen features; where None, none.
        strengths: of the shifts, by their names; none that is left out or empty.
        split: which to measure on; probes are fitted to the training split of `to_data`.
        max_samples: samples of a split to probe at most.
        seed: of the noise, and of the samples that choose a penalty.

    Raises:
        UserError: a language model; nothing to measure; strengths that no shift can do; data that the model cannot
            read, or that have no labels or one class.
    """
    from layersim.commands.features import fitted_split
    from layersim.report.transfer import TransferReport
    from layersim.transfer import check_strengths, shifted_accuracies

    if module.backbone.reads_tokens:
        raise UserError("Transfer is for classifiers, but this model predicts tokens. Change --ckpt_path.")
    wanted = {kind: values for kind, values in strengths.items() if values}
    shifting = module.backbone.input_size is not None and bool(wanted)
    if not shifting and to_data is None:
        raise UserError("Nothing to measure: shifts are for models of images. Set --to_data for a linear probe.")
    if shifting:  # all that is asked for is checked before anything is measured
        check_strengths(wanted, module.backbone.input_size)
        _labels(data, split)
        data.check(module.backbone)
    if to_data is not None:
        for name in ("train", split):
            fitted_split(module.backbone, to_data, name, _TASK)
            if len(set(_labels(to_data, name).tolist())) < 2:
                raise UserError(f"A probe needs two classes or more, but the {name} split of --to_data has one.")
    accuracy, shifts = shifted_accuracies(module, data, split, wanted, seed=seed) if shifting else (None, {})
    return TransferReport(
        model=type(module).__name__,
        layers=module.num_layers,
        split=split,
        data={},
        samples=len(data.splits[split]) if shifting else 0,
        accuracy=accuracy,
        shifts=shifts,
        probe=None if to_data is None else _probe(module, to_data, split, max_samples, seed),
    )


def main(args: Sequence[str]) -> None:
    """Runs the command with what stands behind `layersim transfer`."""
    parser = _parser(args)
    from layersim.commands.models import open_module, read_source
    from layersim.report.drawing.canvas import save_figure
    from layersim.report.transfer import transfer_figure, transfer_table, write_transfer_report

    model = peek(args, "ckpt_path")["ckpt_path"]
    source = None if model is None else read_source(model)
    options = parser.read([] if source is None else [source.data])
    assert source is not None  # --ckpt_path is required
    if source.state is None:
        raise UserError(f"Expected a run's directory, or a checkpoint (….ckpt), but got --ckpt_path {source.given}.")
    if options.data is None:
        raise UserError("The model does not tell its data. Set --data, such as --data=Digits.")
    directory = make_directory(options.to) if options.to else _run_directory(source.given)
    module = open_module(source, device=options.device)
    given = parser.made(options)
    asked = {key: options[key] for key in ("split", "max_samples", "seed")}
    found = transfer(module, given.data, given.to_data, strengths=options.strengths.as_dict(), **asked)
    probe = found.probe and found.probe | {"data": options.to_data.as_dict()}
    report = replace(found, model=source.given, data=options.data.as_dict(), probe=probe)
    save_figure(transfer_figure(report), directory / FIGURE_FILE)
    print_outcome(transfer_table(report), write_transfer_report(directory, report), directory / FIGURE_FILE)


def _parser(args: Sequence[str]) -> ReadingParser:
    parser = reading_parser(
        args,
        samples="Samples of a split to probe at most.",
        seed="Of the noise, and of the samples that choose a penalty.",
        to="A directory in place of the run's.",
        prog="layersim transfer",
        description="Measure a trained model's layers on shifted images (its own head), and on another task (a linear "
        "probe on frozen features); writes transfer.json and transfer.png into the run's directory, over older ones.",
    )
    parser.add_argument(
        "--ckpt_path", type=str, required=True, metavar="MODEL", help="A run's directory, or a checkpoint."
    )
    parser.add_data("data", "Images to shift; where left out, those it was trained on.")
    parser.add_data("to_data", "Another task for linear probes; where left out, none.")
    for kind, strengths in STRENGTHS.items():
        parser.add_argument(
            f"--strengths.{kind}", type=list[float], default=list(strengths), help=f"{_UNITS[kind]}; [] for none."
        )
    if parser.helps:
        parser.read()
    return parser


def _probe(
    module: "LayerwiseModule", data: "SplitDataModule", split: str, max_samples: int, seed: int
) -> dict[str, Any]:
    """A linear probe on each layer's features, fitted to the training split of other data."""
    from layersim.commands.features import read_features
    from layersim.transfer import linear_probe

    fitted, tested = (
        read_features(module.backbone, data, split=name, max_samples=max_samples, name=f"{name} of --to_data")
        for name in ("train", split)
    )
    targets, test_targets = (side.identity[:, 1].numpy() for side in (fitted, tested))
    probes = [
        linear_probe(train.double().numpy(), targets, test.double().numpy(), test_targets, seed=seed)
        for train, test in zip(fitted.values, tested.values, strict=True)
    ]
    return {
        "data": {},
        "classes": len(set(targets.tolist())),
        "train_samples": len(targets),
        "samples": len(test_targets),
        "penalty": [probe.penalty for probe in probes],
        "accuracy": [probe.accuracy for probe in probes],
    }


def _labels(data: "SplitDataModule", split: str) -> "Integers":
    """Of a split that is to be measured."""
    data.setup()
    if split not in data.splits:
        raise UserError(f"The data have no {split} split: set {data.test_option}, or --split val.")
    labels = data.splits[split].labels
    if labels is None:
        raise UserError(f"Accuracy needs labels, but the {split} split has none. Choose other data.")
    return labels


def _run_directory(given: str) -> Path:
    """That which a model's path lies in."""
    path = Path(given).expanduser().resolve()
    if not path.is_dir() and path.parent.name != "checkpoints":
        raise UserError(f"{given} lies in no run's directory. Set --to, a directory for what comes out.")
    return path if path.is_dir() else path.parent.parent
