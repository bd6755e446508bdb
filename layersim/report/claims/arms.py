"""Finished runs of one task, by how they were trained, as the user says, and by their seed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layersim.errors import UserError
from layersim.report.claims.finished import FinishedRun
from layersim.report.configuration import (
    CONFIG_FILE,
    below,
    class_of,
    flat,
    last_validation,
    model_of,
    read_configuration,
    seed_of,
    trained_how,
    without_loading,
)
from layersim.report.environment import read_environment
from layersim.report.exits import ExitReport
from layersim.report.lens import read_lens_record
from layersim.report.reading import DamagedFile
from layersim.report.records import RECORDS_FILE
from layersim.report.run import load_run
from layersim.report.transfer import TransferReport

ARMS = {
    "standard": "trained at the last layer alone",
    "aligned": "one head, trained at all layers",
    "alternating": "one head, trained at all layers and at the last by turns",
    "separate": "a head for each layer",
}
"""The ways to train that claims speak of."""

_TRAINING = (
    "max_epochs", "max_steps", "max_time", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
    "precision", "limit_train_batches", "limit_val_batches", "overfit_batches",
)  # fmt: skip
"""What of the trainer decides about the model or its numbers."""


@dataclass(frozen=True)
class Arms:
    """Runs of one model on one data set."""

    runs: Mapping[str, Mapping[str, FinishedRun]]
    """By arm, one of `ARMS`, then by seed."""
    notes: list[str] = field(default_factory=list)
    """Which runs were passed over, and in what the arms differ beside objective and head."""

    @property
    def task(self) -> str:
        """The data, the model and its depth, for people."""
        run = _first(next(iter(self.runs.values())))
        data, model = class_of(run.config.get("data")), model_of(run.config)
        return f"{data or 'unknown'}, {model or 'unknown'}, {run.record.layers} layers"

    @property
    def told(self) -> list[str]:
        """Each arm's name, objective and head and seeds, for people."""
        of = {arm: trained_how(_first(runs).config) or "Aligned" for arm, runs in self.runs.items()}
        return [f"{arm}: {of[arm]}, seeds {', '.join(runs)}" for arm, runs in self.runs.items()]


def read_arms(directories: Mapping[str, Iterable[Path]]) -> Arms:
    """The runs of these directories, by arm.

    A run that evaluated a checkpoint of another stands for that one: it has its seed and what transfer told of it.
    Passed over are runs that hold no validation, stopped before their last epoch, or have a damaged file, and of those
    of one seed all but the last that trained.

    Raises:
        UserError: an arm that is none of `ARMS`; a directory that is no run's, or is in two arms; runs of an arm that
            differ in more than their seed; arms of different models or data; no run left.
    """
    notes: list[str] = []
    arms: dict[str, dict[str, FinishedRun]] = {}
    home: dict[Path, str] = {}
    for arm, paths in directories.items():
        if arm not in ARMS:
            raise UserError(f"expected arms among {', '.join(ARMS)}, got {arm!r}.")
        found = list(dict.fromkeys(path.resolve() for path in paths))
        for path in found:
            if home.setdefault(path, arm) != arm:
                raise UserError(f"--{arm}: expected runs of this arm, got {path}, which is one of --{home[path]} too.")
        if runs := _by_seed(arm, found, notes):
            arms[arm] = runs
    if not arms:
        told = " ".join(notes) or "give --standard RUN … and --aligned RUN …"
        raise UserError(f"expected runs to judge, got no finished run: {told}")
    (one, first), *others = ((arm, _first(runs)) for arm, runs in arms.items())
    for other, run in others:
        differ = [key for key in _differences(first, run) if not key.startswith(("model.objective", "model.head"))]
        if barred := [key for key in differ if key.startswith(("data.", "model.backbone.", "layers", "samples"))]:
            raise _apart(f"--{one}, --{other}: expected one model on the same data", first, run, barred)
        if differ:
            notes.append(f"{one} and {other} differ in {', '.join(differ)}.")
    return Arms(arms, notes)


def _by_seed(arm: str, directories: Iterable[Path], notes: list[str]) -> dict[str, FinishedRun]:
    found: list[tuple[FinishedRun, str]] = []
    for path in directories:
        try:
            run = _read(path)
            found.append((run, seed_of(read_configuration(run.origin)) or f"unknown ({run.directory})"))
        except DamagedFile as error:
            notes.append(f"{path} is passed over: {str(error).rstrip('.')}.")
        except UserError as error:
            raise UserError(f"--{arm}: {error}") from error
    runs: dict[str, FinishedRun] = {}
    for run, seed in sorted(found, key=lambda one: one[0].origin == one[0].directory):  # those that trained come last
        if seed in runs:
            notes.append(f"{runs[seed].directory} is passed over: {run.directory} has its seed.")
        runs[seed] = run
    for run in runs.values():
        if differ := _differences(_first(runs), run):
            raise _apart(f"--{arm}: expected runs alike but for their seed", _first(runs), run, differ)
    return runs


def _first(runs: Mapping[str, FinishedRun]) -> FinishedRun:
    return next(iter(runs.values()))


def _read(directory: Path) -> FinishedRun:
    """All that a run's directory tells; DamagedFile where it holds no validation, or stopped before its last."""
    config = read_configuration(directory)
    if config and not (directory / RECORDS_FILE).exists():
        raise DamagedFile("it holds no validation")
    validated = [record for record in load_run(directory).records if record.stage == "validate"]
    if not isinstance(config.get("model"), dict):
        wanted = f"{directory / CONFIG_FILE} to tell the run's model"
        raise DamagedFile(f"expected {wanted}, which claims are judged by, but it does not.")
    if not validated:
        raise DamagedFile("it holds no validation")
    origin, checkpoint = directory, config.get("ckpt_path")
    if validated[-1].step == 0 and isinstance(checkpoint, str):  # it trained nothing; a path is relative to some folder
        bases = [base for base in (Path(), *directory.parents) if (base / checkpoint).exists()]
        origin = (*bases, Path())[0].joinpath(checkpoint).resolve().parent.parent
    transfer = TransferReport.read(directory) or TransferReport.read(origin)
    lens = read_lens_record(directory) or read_lens_record(origin)
    environment = read_environment(directory) or {}
    exits = ExitReport.read(directory)
    run = FinishedRun(directory, config, validated[-1], origin, exits, transfer, lens, environment)
    _check_finished(run)
    return run


def _check_finished(run: FinishedRun) -> None:
    """DamagedFile where a run does not count. What other limits than epochs end is taken as it is."""
    if run.record.step == 0 and run.origin == run.directory:
        raise DamagedFile("it neither trained a model nor read a checkpoint")
    trainer = below(run.config, "trainer")
    steps, callbacks = trainer.get("max_steps"), trainer.get("callbacks")
    stoppers = any("EarlyStopping" in class_of(entry) for entry in (callbacks if isinstance(callbacks, list) else []))
    otherwise = stoppers or (isinstance(steps, int) and steps > 0) or trainer.get("max_time")
    last = last_validation(run.config)
    if run.record.step and not otherwise and last is not None and run.record.epoch < last:
        raise DamagedFile(f"its last validation is of epoch {run.record.epoch + 1} of {trainer['max_epochs']}")


def _differences(one: FinishedRun, other: FinishedRun) -> list[str]:
    """The settings in which two runs differ."""
    mine, theirs = _settings(one), _settings(other)
    return [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]


def _settings(run: FinishedRun) -> dict[str, str]:
    """Data, model, training, and how it was measured, flat."""
    data = without_loading(run.config.get("data"))
    if isinstance(data.get("batch_size"), int):
        processes = str(run.environment.get("processes", 1))
        # R take the steps of one with R times the batch
        data["batch_size"] *= int(processes) if processes.isdigit() else 1
    trainer = {key: value for key, value in below(run.config, "trainer").items() if key in _TRAINING}
    together: dict[str, Any] = {"data": data, "model": run.config["model"], "trainer": trainer} | run.how_measured
    return {key.replace(".init_args", ""): repr(value) for key, value in flat(together).items() if value is not None}


def _apart(expected: str, one: FinishedRun, other: FinishedRun, differ: list[str]) -> UserError:
    found = f"{one.directory} and {other.directory}, which differ in {', '.join(differ)}"
    return UserError(f"{expected}, got {found}: judge them apart.")
