"""A model with its exits, as it is served: from a run's directory, a checkpoint, or a folder that `layersim export`
wrote."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from layersim.data import SplitDataModule
from layersim.data.inputs import ImageInputs, Inputs
from layersim.errors import UserError, as_user_error, user_path
from layersim.exits import POLICIES, Confidence, EarlyExit
from layersim.export import RECORD_FILE, Serving
from layersim.module import LayerwiseModule
from layersim.report.configuration import CONFIG_FILE, read_configuration
from layersim.report.exits import ExitReport
from layersim.report.token_exits import TokenExitReport
from layersim.runs.checkpoints import read_checkpoint
from layersim.runs.models import Source, make_data, open_module, read_source, run_of
from layersim.runs.parameters import fingerprint, fingerprint_of
from layersim.runs.stored import stored_sections

PRECISIONS: dict[str, tuple[torch.dtype | None, torch.dtype | None]] = {
    "32-true": (None, None),
    "64-true": (torch.float64, None),
    "bf16-true": (torch.bfloat16, None),
    "16-true": (torch.float16, None),
    "bf16-mixed": (None, torch.bfloat16),
    "16-mixed": (None, torch.float16),
}
"""As Lightning names them: what the weights become, and what autocast computes in."""


_TOKENS = (
    "is of a language model, whose tokens leave by layersim.exits.TokenExit(backbone, head, policy, "
    "threshold), with the threshold that token_exits.json has. EarlyExit is for classifiers."
)


def load_early_exit(given: str | Path, *, exits: str | Path | None = None, device: str = "auto") -> EarlyExit:
    """`EarlyExit.load`."""
    place = user_path(given)
    if place.suffix in (".yaml", ".yml"):
        raise UserError(f"{given} is a recipe, not a trained model. Load a run's directory, a checkpoint or an export.")
    if place.name == ExitReport.FILE:
        given = place = place.parent
    if (place / TokenExitReport.FILE).exists():
        raise UserError(f"{given} {_TOKENS}")
    folder = run_of(place)
    beside = folder if exits is None else user_path(exits)
    report = None if beside is None else ExitReport.read(beside)
    if exits is not None and report is None:
        raise UserError(f"There is no {ExitReport.FILE} at {exits}: `layersim exits` writes it. Change exits.")
    source = _source(given, place, report)
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        module = open_module(source, device=device)
    if module.backbone.reads_tokens:
        raise UserError(f"{given} {_TOKENS}")
    if source.state is None and (module.backbone.fresh_classifier or not source.predicts):
        raise UserError(f"{given} has no trained classifier, so that its answers would mean nothing. Train one first.")
    inputs = inputs_of(source, module)
    names = source.class_names if source.class_names and len(source.class_names) == module.head.num_classes else None
    if report is not None:
        return early_exit_of(report, module, told=str(beside), inputs=inputs, class_names=names)
    early_exit = EarlyExit(module.backbone, module.head, Confidence(), None, inputs=inputs, class_names=names)
    rank_zero_info(
        f"No {ExitReport.FILE} in {folder or given}: every sample goes through all {module.num_layers} layers. "
        + _hint(module, source, folder)
    )
    return early_exit


def early_exit_of(
    report: ExitReport,
    module: LayerwiseModule,
    *,
    told: str,
    inputs: Inputs | None = None,
    class_names: list[str] | None = None,
) -> EarlyExit:
    """A model with the exits of a report, which must be this very model's, read by this tokenizer; in the precision
    that they were chosen in.

    Args:
        report: of `layersim exits`.
        module: the model, which is cast to that precision.
        told: where the report is, for errors.
        inputs: what makes batches of texts or images.
        class_names: C of them.

    Raises:
        UserError: other weights, another tokenizer, or a precision or policy that is not known here.
    """
    if report.policy not in POLICIES:
        raise UserError(
            f"The exits in {told} are by the policy {report.policy!r}, which is none of {', '.join(POLICIES)}."
        )
    if report.precision not in PRECISIONS:
        raise UserError(
            f"The threshold in {told} was chosen in the precision {report.precision}, which is not known here, and "
            f"promises nothing in another. Run `layersim exits` with a --trainer.precision of {', '.join(PRECISIONS)}."
        )
    weights, autocast = PRECISIONS[report.precision]
    if weights is not None:
        module.to(weights)
    if (here := fingerprint(module)) != report.weights:
        raise UserError(
            f"The threshold in {told} was chosen for a model with other weights ({report.weights}, here {here}), and "
            "promises nothing of this one. Run `layersim exits` on this checkpoint."
        )
    if inputs is not None and report.tokenizer is not None and inputs.fingerprint != report.tokenizer:
        raise UserError(
            f"The threshold in {told} was chosen with another tokenizer, or another length to cut texts at "
            f"({report.tokenizer}, here {inputs.fingerprint}), and promises nothing with this one. Run `layersim "
            "exits` with the data's own --data.tokenizer and --data.max_length."
        )
    return EarlyExit(
        module.backbone,
        module.head,
        POLICIES[report.policy](),
        report.threshold,
        report.temperatures,
        inputs=inputs,
        class_names=class_names,
        autocast=autocast,
    )


def inputs_of(source: Source, module: LayerwiseModule) -> Inputs | None:
    """What makes batches as the data that the model was trained on make them for evaluation; where those are not told,
    as the model's own library does."""
    backbone = module.backbone
    section = source.data
    if section is None:
        if backbone.input_size is None and getattr(backbone, "tokenizer_name", None) is None:
            return None
        kind = "Images" if backbone.input_size else "Text"
        section = {"class_path": f"layersim.data.{kind}", "init_args": {"path": "."}}
    return make_data(section).inputs(backbone)


def _source(given: str | Path, place: Path, report: ExitReport | None) -> Source:
    if not place.is_dir() or place.suffix == ".ckpt":
        return read_source(str(given))
    if (place / RECORD_FILE).exists():
        return read_export(place)
    if not any(place.glob("checkpoints/*.ckpt")) and (place / CONFIG_FILE).exists() and report is not None:
        return _of_exits_run(place, report)
    return _fitting(place / "checkpoints", report) or read_source(str(given))


def _of_exits_run(place: Path, report: ExitReport) -> Source:
    """The model that a run of `layersim exits` was of, with that run's options: the checkpoint that it was given, or
    its recipe's own."""
    config = read_configuration(place)
    checkpoint = config.get("ckpt_path")
    if not checkpoint:
        return read_source(str(place / CONFIG_FILE))
    path = Path(str(checkpoint))
    if not path.exists() and not path.is_absolute():  # runs are kept together, wherever that is by now
        path = next((up / path for up in place.resolve().parents if (up / path).exists()), path)
    if not path.exists():
        raise UserError(
            f"The exits in {place} are of the checkpoint {checkpoint}, which is not there (any more). Load that run "
            "from where it is now, with exits= this directory."
        )
    found = _fitting(path.parent, report, first=path) or read_source(str(path))
    chosen_by = {"hyper_parameters": config["model"], "layersim": {"config": config}}
    own = stored_sections(chosen_by, place / CONFIG_FILE)  # which may come from anywhere, as a checkpoint may
    return replace(found, model=own["model"], data=own.get("data"))


def _fitting(folder: Path, report: ExitReport | None, first: Path | None = None) -> Source | None:
    """Of the checkpoints in a folder the one that a report is of; None where none is, or nothing is reported."""
    if report is None or report.precision not in PRECISIONS:
        return None
    first = first or folder / "last.ckpt"
    others = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    weights, _ = PRECISIONS[report.precision]
    for path in [first] * first.exists() + [path for path in others if path.resolve() != first.resolve()]:
        if fingerprint_of(read_checkpoint(path)["state_dict"], weights) == report.weights:
            return read_source(str(path))
    return None


def read_export(folder: Path) -> Source:
    """A stock checkpoint that `layersim export` wrote.

    Raises:
        UserError: it is a program, or the weights of a model of one's own; its record cannot be read.
    """
    with as_user_error(f"{folder / RECORD_FILE} cannot be read"):
        record: dict[str, Any] = dict(json.loads((folder / RECORD_FILE).read_text(encoding="utf-8")))
    stored = {"layersim": {"config": {"data": record["data"]}}} if "data" in record else {}
    data = stored_sections(stored, folder).get("data")
    source = read_source(str(folder)).for_data(tokens=False)
    return replace(source, data=data, class_names=record.get("classes"))


def serving_of(
    report: ExitReport | None,
    data: SplitDataModule,
    inputs: Inputs | None,
    class_names: list[str] | None,
    *,
    stock: bool,
) -> Serving:
    """What an export carries: a tokenizer, the exits, the names, and the section that makes `inputs`, but for where the
    data are.

    Args:
        report: the exits, where the export has any.
        data: of the recipe.
        inputs: of those data.
        class_names: C of them.
        stock: whether the export is a stock checkpoint, whose exits are of its own weights.
    """
    record: dict[str, Any] = {}
    if report is not None:
        record["exits"] = {"policy": report.policy, "threshold": report.threshold}
    preprocessing: dict[str, Any] = {}
    if inputs is not None and data.section is not None:
        own = {"path": ".", "tokenizer": None}
        options = dict(data.section.get("init_args") or {})
        options |= {key: own[key] for key in own.keys() & options.keys() if options[key] != "bytes"}
        record["data"] = {"class_path": data.section["class_path"], "init_args": options}
    if isinstance(inputs, ImageInputs):
        preprocessing = {"mean": inputs.preprocessing.mean, "std": inputs.preprocessing.std}

    def write(folder: Path) -> None:
        if inputs is not None:
            inputs.save(folder)
        if report is not None:
            dtype, _ = PRECISIONS.get(report.precision, (None, None))  # which a fingerprint tells
            weights = fingerprint(open_module(read_export(folder)).to(dtype)) if stock else report.weights
            replace(report, weights=weights).write(folder)

    usage = Serving.usage if inputs is None else inputs.usage
    return Serving(class_names, preprocessing, record, write, usage)


def _hint(module: LayerwiseModule, source: Source, folder: Path | None) -> str:
    """Where exits of this model are, of a run beside its own; else how they are chosen."""
    here = fingerprint(module)
    for file in sorted(folder.resolve().parent.glob(f"*/{ExitReport.FILE}") if folder else (), reverse=True):
        with suppress(UserError):  # a damaged one, of which this is not the place to speak
            if (report := ExitReport.read(file)) is not None and report.weights == here:
                return f"Those in {file.parent} are of this model: load that directory."
    if source.path is None:
        return "`layersim exits` chooses a threshold, and `layersim export --exits` carries it along."
    return f"`layersim exits --ckpt_path {source.path}` chooses a threshold; load the directory that it writes."
