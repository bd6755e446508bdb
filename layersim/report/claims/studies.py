"""Runs put in order for judging: a study is one model on one data set, its arms are ways to train it.

Runs of different studies are never compared.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from layersim.report.claims.finished import FinishedRun
from layersim.report.claims.joining import join_evaluations
from layersim.report.configuration import class_of, flat, init_args, read_configuration, seed_of, without_loading

Role = Literal["standard", "shared", "separate", "other"]
"""Trained at the last layer alone; one head trained at all layers; a head for each; what no claim speaks of."""

_TRAINING = (
    "max_epochs", "max_steps", "max_time", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
    "precision", "limit_train_batches", "limit_val_batches", "overfit_batches",
)  # fmt: skip
"""What of the trainer decides about the model or its numbers."""
_USUAL = {"weights": "linear", "period": 2, "phase": 0, "counts": "steps", "norm": "final", "label_smoothing": 0.0}
"""Options of objectives and heads that an arm's name need not tell."""


@dataclass
class Arm:
    """Runs alike but for their seed."""

    name: str
    """Objective and head."""
    role: Role
    runs: dict[str, FinishedRun] = field(default_factory=dict)
    """By seed, see `_seed_of`."""


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


def group_studies(runs: Sequence[FinishedRun]) -> tuple[list[Study], list[str]]:
    """Studies in order of appearance, and what there is to say of how runs were put together.

    A run that only evaluated a checkpoint of another run in the list adds to that one what it measured besides. Of
    runs alike even in their seed the one that stands last counts. Runs that stopped before their last epoch are left
    out.
    """
    joined, notes = join_evaluations(runs)
    studies: dict[str, Study] = {}
    for number, run in enumerate(joined, start=1):
        if why := _unfinished(run):
            notes.append(f"{run.directory} is passed over: {why}.")
            continue
        settings = _settings(run)
        study = studies.setdefault(repr(sorted(settings.items())), Study(_study_name(run), settings))
        name, role = _arm_of(run.config["model"])
        arm = study.arms.setdefault(name, Arm(name, role))
        seed = _seed_of(run, number)
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


def _unfinished(run: FinishedRun) -> str:
    """Why a run does not count; empty where it does. What other limits than epochs end is taken as it is."""
    if run.record.step == 0:
        return "" if run.evaluated else "it neither trained a model nor read a checkpoint"
    trainer = run.config.get("trainer") or {}
    epochs, every = trainer.get("max_epochs"), trainer.get("check_val_every_n_epoch") or 1
    stoppers = any("EarlyStopping" in class_of(entry) for entry in trainer.get("callbacks") or [])
    otherwise = stoppers or (trainer.get("max_steps") or -1) > 0 or trainer.get("max_time")
    if epochs is None or epochs < 0 or otherwise or run.record.epoch + every >= epochs:
        return ""
    return f"its last validation is of epoch {run.record.epoch + 1} of {epochs}"


def _seed_of(run: FinishedRun, number: int) -> str:
    """Its `seed_of`; of an evaluation, that of the training. Where it is unknown, the checkpoint, or what no other run
    has."""
    config = run.config
    if run.evaluated:
        assert run.checkpoint is not None
        config = read_configuration(run.checkpoint.parent.parent)
        if not config:
            return f"of {run.checkpoint}"
    return seed_of(config) or f"unknown ({number})"


def _settings(run: FinishedRun) -> dict[str, str]:
    """What must be alike in runs that are compared: data, model, training, and how it was measured."""
    config = run.config
    model = {key: value for key, value in config["model"].items() if key not in ("objective", "head")}
    loader = without_loading(config.get("data"))
    if isinstance(loader.get("batch_size"), int):
        loader["batch_size"] *= run.processes  # R processes take the steps of one with R times the batch
    trainer = {key: value for key, value in (config.get("trainer") or {}).items() if key in _TRAINING}
    together = {
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
    last = objective == "LastLayer" or init_args(model.get("objective")).get("weights") == "last"
    role: Role = "standard" if last else "shared"
    if objective == "CosineRegularized" or (last and head != "SharedHead"):  # heads that no label reaches
        role = "other"
    elif head != "SharedHead":
        role = "separate"
    return " + ".join(parts), role


def _bracketed(options: Iterable[str]) -> list[str]:
    joined = ", ".join(options)
    return [f"({joined})"] if joined else []
