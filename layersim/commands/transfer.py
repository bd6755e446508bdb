"""`layersim transfer --ckpt_path MODEL`: what do a model's layers know of shifted images, and of another task?"""

from pathlib import Path
from typing import Any, Literal

from layersim.commands.outcome import data_of, made_place, run_directory, show_outcome
from layersim.commands.parser import Data
from layersim.data import SplitDataModule
from layersim.errors import UserError, at_least, check_seed, of_option
from layersim.module import LayerwiseModule
from layersim.report.transfer import TransferReport, transfer_figure, transfer_table
from layersim.runs.models import LEAST, fitted_split, labels_of, make_data, open_module, read_features, read_source
from layersim.transfer import check_strengths, fit_probe, shifted_accuracies

STRENGTHS = {
    "rotation": [10.0, 20.0, 30.0, 45.0, 60.0],
    "noise": [0.1, 0.25, 0.5, 0.75, 1.0],
    "blur": [0.02, 0.04, 0.06, 0.09, 0.12],
}


def transfer(
    *,
    ckpt_path: str,
    data: Data = None,
    to_data: Data = None,
    strengths: dict[str, list[float]] = STRENGTHS,
    split: Literal["val", "test"] = "val",
    max_samples: int = 4096,
    device: str = "auto",
    seed: int = 0,
    to: Path | None = None,
) -> TransferReport:
    """Measure a trained model's layers on shifted images (its own head), and on another task (a linear probe on frozen
    features); writes transfer.json and transfer.png into the run's directory, over older ones.

    Args:
        ckpt_path: a run's directory, or a checkpoint
        data: images to shift; where left out, those it was trained on.
        to_data: another task for linear probes; where left out, none.
        strengths: `--strengths.rotation` in degrees; `--strengths.noise` in standard deviations, on normalised pixels;
            `--strengths.blur`, widths σ as shares of the image's width; [] for none
        split: of the data to read
        max_samples: samples of a split to probe at most
        device: where the model runs, such as cpu or cuda:1
        seed: of the noise, and of the samples that choose a penalty
        to: a directory in place of the run's

    Raises:
        UserError: a model that is no checkpoint, or predicts tokens; nothing to measure; strengths that no shift can
            do; data that the model cannot read, or that have no labels or one class; a directory that cannot be made.
    """
    source = read_source(ckpt_path)
    if source.state is None:
        raise UserError(f"Expected a run's directory, or a checkpoint (….ckpt), but got --ckpt_path {ckpt_path}.")
    data = data_of(data, source)
    check_seed(seed)
    at_least(LEAST, "--max_samples", max_samples)
    to = made_place(to or run_directory(ckpt_path), "transfer")
    module = open_module(source, device=device)
    if module.backbone.reads_tokens:
        raise UserError("Transfer is for classifiers, but this model predicts tokens. Change --ckpt_path.")
    images = make_data(data)
    with of_option("--to_data"):
        task = None if to_data is None else make_data(to_data)
    strengths = {kind: values for kind, values in strengths.items() if values}
    shifting = module.backbone.input_size is not None and bool(strengths)
    if not shifting and task is None:
        raise UserError("Nothing to measure: shifts are for models of images. Set --to_data for a linear probe.")
    if shifting:  # all that is asked for is checked before anything is measured
        check_strengths(strengths, module.backbone.input_size)
        fitted_split(module.backbone, images, split, ckpt_path)
        labels_of(images, split)
        images.check(module.backbone)
    if task is not None:
        for name in ("train", split):
            with of_option("--to_data"):
                fitted_split(module.backbone, task, name, "the probe (--to_data)")
                classes = set(labels_of(task, name).tolist())
            if len(classes) < 2:
                raise UserError(f"A probe needs two classes or more, but the {name} split of --to_data has one.")
    accuracy, shifts = shifted_accuracies(module, images, split, strengths, seed=seed) if shifting else (None, {})
    report = TransferReport(
        model=ckpt_path,
        layers=module.num_layers,
        split=split,
        data=data,
        samples=len(images.splits[split]) if shifting else 0,
        accuracy=accuracy,
        shifts=shifts,
        probe=None if task is None else {"data": to_data, **_probe(module, task, split, max_samples, seed)},
    )
    show_outcome(transfer_table(report), report.write(to), transfer_figure(report))
    return report


def _probe(module: LayerwiseModule, data: SplitDataModule, split: str, max_samples: int, seed: int) -> dict[str, Any]:
    """A linear probe on each layer's features, fitted to the training split of other data."""
    fitted, tested = (
        read_features(module.backbone, data, split=name, max_samples=max_samples, name=f"{name} of --to_data")
        for name in ("train", split)
    )
    assert fitted.targets is not None
    assert tested.targets is not None
    targets, test_targets = fitted.targets.numpy(), tested.targets.numpy()
    probes = [fit_probe(features.double().numpy(), targets, seed=seed) for features in fitted.values]
    each = zip(probes, tested.values, strict=True)
    return {
        "classes": len(set(targets.tolist())),
        "train_samples": len(targets),
        "samples": len(test_targets),
        "penalty": [probe.penalty for probe in probes],
        "accuracy": [probe.accuracy(features.double().numpy(), test_targets) for probe, features in each],
    }
