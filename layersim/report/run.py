"""A finished run, read from its directory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layersim.errors import UserError
from layersim.report.configuration import CONFIG_FILE, read_configuration
from layersim.report.reading import DamagedFile
from layersim.report.records import RECORDS_FILE, LayerRecord, Stage, read_records


@dataclass(frozen=True)
class Run:
    """A run's directory, read."""

    name: str
    """The `experiment` of its `config.yaml`; where that says nothing, the directory's name."""
    directory: Path
    records: list[LayerRecord]


def load_run(directory: Path) -> Run:
    """Reads a run's `layers.jsonl` and, for its name, its `config.yaml`.

    Raises:
        UserError: the directory is not a run's (the runs inside it are named).
        DamagedFile: one of the two files is broken, or the run measured nothing.
    """
    if (directory / CONFIG_FILE).exists() and next(directory.rglob(RECORDS_FILE), None) is None:
        raise DamagedFile(f"{directory} holds no {RECORDS_FILE}: nothing was measured there.")
    if not (directory / RECORDS_FILE).exists():
        raise UserError(
            f"expected a run's directory, which holds {RECORDS_FILE}, got {directory}{_what_it_is(directory)}"
        )
    experiment: str | None = read_configuration(directory).get("experiment")
    name = directory.name if experiment is None else experiment
    return Run(name, directory, read_records(directory / RECORDS_FILE))


def pick_record(run: Run, *, stage: Stage, epoch: int | None = None) -> LayerRecord:
    """The run's last record of this stage, or of this stage and epoch; a UserError names those that there are."""
    of_stage = [record for record in run.records if record.stage == stage]
    if not of_stage:
        stages = ", ".join(sorted({record.stage for record in run.records})) or "no record at all"
        raise DamagedFile(
            f"--stage {stage}: expected a record of this stage in {run.directory / RECORDS_FILE}, got {stages}."
        )
    of_epoch = [record for record in of_stage if epoch in (None, record.epoch)]
    if not of_epoch:
        epochs = ", ".join(str(epoch) for epoch in sorted({record.epoch for record in of_stage}))
        raise UserError(
            f"--epoch {epoch}: expected an epoch recorded in {run.directory / RECORDS_FILE}, got only {epochs}."
        )
    return of_epoch[-1]


def name_runs(runs: Sequence[Run]) -> list[str]:
    """A name for each run, no two alike: its experiment; where runs share that, with the directory's name, which is the
    run's id; where they share even that, with the whole path."""
    names = [run.name for run in runs]
    for marks in ([run.directory.name for run in runs], [str(run.directory) for run in runs]):
        shared = Counter(names)
        names = [
            f"{run.name} ({mark})" if shared[name] > 1 else name
            for run, name, mark in zip(runs, names, marks, strict=True)
        ]
    return names


def _what_it_is(directory: Path) -> str:
    if not directory.is_dir():
        return ", which is no directory."
    inside = sorted(path.parent for path in directory.rglob(RECORDS_FILE))
    if not inside:
        return ", which holds none."
    return ", which holds runs: name one or more of\n" + "\n".join(f"  {path}" for path in inside)
