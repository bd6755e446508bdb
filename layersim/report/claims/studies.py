"""Runs put in order for judging: a study is one model on one data set, its arms are ways to train it.

Runs of different studies are never compared.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from layersim.errors import UserError
from layersim.report.configuration import CONFIG_FILE, class_of, flat, init_args, read_configuration
from layersim.report.environment import read_environment
from layersim.report.exits import ExitReport, read_exit_report
from layersim.report.records import LayerRecord
from layersim.report.run import load_run, pick_record
from layersim.report.transfer import TransferReport, read_transfer_report

Role = Literal["standard", "shared", "separate"]
"""Trained at the last layer alone; one head for all layers; a head for each."""

_TRAINING = (
    "max_epochs", "max_steps", "max_time", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
    "precision", "limit_train_batches", "limit_val_batches", "overfit_batches",
)  # fmt: skip
"""What of the trainer decides about the model or its numbers."""
_READING = {"num_workers", "pin_memory", "eval_batch_size", "seed"}
"""What of the data does not."""
_USUAL = {"weights": "linear", "period": 2, "phase": 0, "counts": "steps", "norm": "final", "label_smoothing": 0.0}
"""Options of objectives and heads that an arm's name need not tell."""


@dataclass(frozen=True)
class FinishedRun:
    """A run, with all that is told of its model."""

    directory: Path
    config: dict[str, Any]
    record: LayerRecord
    """Its last validation."""
    exits: ExitReport | None = None
    transfer: TransferReport | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> Mapping[str, float] | None:
        """How many it has, as `layersim.parameters` counts them; None where nothing counted."""
        return self.exits.parameters if self.exits else self.environment.get("parameters")

    @property
    def seed(self) -> int | None:
        """Its `seed_everything`; None where the configuration tells no number."""
        seed = self.config.get("seed_everything")
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    @property
    def samples(self) -> int | None:
        """N that are independent of each other: none of a language model's tokens."""
        tokens = init_args(self.config.get("model", {}).get("backbone")).get("task") == "language-modeling"
        return None if tokens else self.record.samples


@dataclass
class Arm:
    """Runs alike but for their seed."""

    name: str
    """Objective and head."""
    role: Role
    runs: dict[int, FinishedRun] = field(default_factory=dict)
    """By seed; below 0, and no other run's, where that is unknown."""


@dataclass
class Study:
    """One model on one data set, trained in several ways, all else alike."""

    name: str
    settings: dict[str, str]
    """What all its runs have in common, flat."""
    arms: dict[str, Arm] = field(default_factory=dict)

    def of(self, role: Role) -> list[Arm]:
        """The arms in a role."""
        return [arm for arm in self.arms.values() if arm.role == role]


def read_run(directory: Path) -> FinishedRun:
    """All that a run's directory tells.

    Raises:
        UserError: no run's directory, no `config.yaml`, no validation, or a file that is broken.
    """
    run = load_run(directory)
    config = read_configuration(directory)
    if not isinstance(config.get("model"), dict):
        raise UserError(
            f"expected {directory / CONFIG_FILE} to tell the run's model, which claims are judged by, but it does not."
        )
    record = pick_record(run, stage="validate")
    return FinishedRun(
        directory,
        config,
        record,
        read_exit_report(directory),
        read_transfer_report(directory),
        read_environment(directory) or {},
    )


def group_studies(runs: Sequence[FinishedRun]) -> tuple[list[Study], list[str]]:
    """Studies in order of appearance, and what there is to say of how runs were put together.

    A run that only evaluated a checkpoint of another run in the list adds to that one what it measured besides. Of
    runs alike even in their seed the one that stands last counts.
    """
    joined, notes = _join_evaluations(runs)
    studies: dict[str, Study] = {}
    for number, run in enumerate(joined, start=1):
        if run.record.step == 0 and not run.config.get("ckpt_path"):
            notes.append(f"{run.directory} is passed over: it neither trained a model nor read a checkpoint.")
            continue
        settings = _settings(run)
        study = studies.setdefault(repr(sorted(settings.items())), Study(_study_name(run), settings))
        name, role = _arm_of(run.config["model"])
        arm = study.arms.setdefault(name, Arm(name, role))
        seed = -number if run.seed is None else run.seed
        if seed in arm.runs:
            notes.append(f"{arm.runs[seed].directory} is passed over: {run.directory} is alike, with its seed too.")
        arm.runs[seed] = run
    found = list(studies.values())
    for study in found[1:]:
        keys = sorted(study.settings.keys() | found[0].settings.keys())
        told = [key for key in keys if study.settings.get(key) != found[0].settings.get(key)]
        shown = ", ".join(told[:4]) + (f" and {len(told) - 4} more" if len(told) > 4 else "")
        notes.append(f"{study.name} is judged apart from {found[0].name}: they differ in {shown}.")
    return found, notes


def _join_evaluations(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    trained = {run.directory.resolve(): run for run in runs}
    notes = []
    for run in runs:
        checkpoint = run.config.get("ckpt_path")
        owner = Path(checkpoint).resolve().parent.parent if checkpoint and run.record.step == 0 else None
        if owner is None or owner not in trained or owner == run.directory.resolve():
            continue
        fitted = trained[owner]
        del trained[run.directory.resolve()]
        if not _same_state(fitted.record, run.record):
            notes.append(
                f"{run.directory} is passed over: its accuracies are not those that {fitted.directory} ended with."
            )
            continue
        empty = [one.name for one in fields(LayerRecord) if getattr(fitted.record, one.name) in (None, {})]
        record = replace(fitted.record, **{name: getattr(run.record, name) for name in empty})
        exits, transfer = fitted.exits or run.exits, fitted.transfer or run.transfer
        trained[owner] = replace(fitted, record=record, exits=exits, transfer=transfer)
        notes.append(f"{run.directory} evaluated a checkpoint of {fitted.directory} and adds to it.")
    return list(trained.values()), notes


def _same_state(first: LayerRecord, second: LayerRecord) -> bool:
    """Whether two records may be of one model on the same samples: as far as told, they agree but for rounding."""
    if (first.layers, first.samples) != (second.layers, second.samples):
        return False
    pairs = zip(first.accuracy or [], second.accuracy or [], strict=False)
    return all(math.isclose(one, other, abs_tol=1e-3) for one, other in pairs)


def _settings(run: FinishedRun) -> dict[str, str]:
    """What must be alike in runs that are compared: data, model, training, and how it was measured."""
    config = run.config
    model = {key: value for key, value in config["model"].items() if key not in ("objective", "head")}
    data = config.get("data") or {}
    loader = {key: value for key, value in init_args(data).items() if key not in _READING}
    trainer = {key: value for key, value in (config.get("trainer") or {}).items() if key in _TRAINING}
    together = {
        "data": class_of(data),
        **flat({"data": loader, "model": model, "trainer": trainer, "measured": run.record.options}),
        "layers": run.record.layers,
        "samples": run.record.samples,
    }
    return {key.replace(".init_args", ""): repr(value) for key, value in together.items() if value is not None}


def _study_name(run: FinishedRun) -> str:
    backbone = run.config["model"].get("backbone")
    options = init_args(backbone)
    named = options.get("name_or_path") or options.get("name")
    model = named or (options.get("config_args") or {}).get("model_type") or class_of(backbone) or "unknown"
    return f"{class_of(run.config.get('data')) or 'unknown'}, {model}, {run.record.layers} layers"


def _arm_of(model: Mapping[str, Any]) -> tuple[str, Role]:
    """The objective and the head with their options, and the role that both make."""
    objective, head = class_of(model.get("objective") or "Aligned"), class_of(model.get("head") or "SharedHead")
    told = {
        part: [
            f"{name.replace('_', ' ')} {value}"
            for name, value in init_args(model.get(part)).items()
            if value is not None and value != _USUAL.get(name)
        ]
        for part in ("objective", "head")
    }
    parts = [" ".join([objective, *_bracketed(told["objective"])])]
    if head != "SharedHead" or told["head"]:
        parts.append(" ".join([head, *_bracketed(told["head"])]))
    role: Role = "separate" if head != "SharedHead" else "standard" if objective == "LastLayer" else "shared"
    return " + ".join(parts), role


def _bracketed(options: Iterable[str]) -> list[str]:
    joined = ", ".join(options)
    return [f"({joined})"] if joined else []
