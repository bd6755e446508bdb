"""Which runs are there, and what became of each."""

import contextlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from layersim.errors import UserError
from layersim.report.configuration import CONFIG_FILE, read_configuration, trained_how
from layersim.report.numbers import three
from layersim.report.quantity import LAYER, told
from layersim.report.records import RECORDS_FILE, LayerRecord, read_records
from layersim.report.terminal import gathered


@dataclass(frozen=True)
class Listed:
    """A run's directory as the list shows it."""

    directory: Path
    objective: str
    """The objective's class, `?` where the configuration does not say."""
    record: LayerRecord | None
    """The last validation, or, where there is none, the last test; None before the first."""
    changed: float
    """When the run last wrote of itself, in seconds since 1970."""
    notice: str | None
    """What is wrong with it, in one line."""


def find_runs(roots: Sequence[Path]) -> list[Listed]:
    """The runs at or below these directories, the one that wrote last first. A broken one is listed, with a notice.

    Raises:
        UserError: a directory that does not exist.
    """
    homes = set()
    for root in roots:
        if not root.is_dir():
            raise UserError(f"expected a directory of runs, got {root}, which is none.")
        # passes over folders that may not be read, or are gone again
        homes |= {Path(home) for home, _, files in os.walk(root) if not {RECORDS_FILE, CONFIG_FILE}.isdisjoint(files)}
    own = [home for home in homes if "wandb" not in home.parts]  # where W&B keeps a config.yaml of a run's own
    found = (_listed(home) for home in own)
    return sorted((run for run in found if run), key=lambda run: (-run.changed, run.directory))


def runs_table(runs: Sequence[Listed], root: Path, now: float) -> Table:
    """A row a run: epoch and accuracy (the last layer's) of its last validation, where there are language models
    perplexity too, effective depth, and age.

    Args:
        runs: in the order in which they are shown.
        root: to which the directories are shown.
        now: seconds since 1970; a run's age is counted from when it last wrote.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("objective", no_wrap=True)
    measured = gathered([_measured(run.record) for run in runs])
    for name in (*measured, "age"):
        table.add_column(Text(name), justify="right")
    for run, *cells in zip(runs, *measured.values(), strict=True):
        shown = run.directory.relative_to(root) if run.directory.is_relative_to(root) else run.directory
        table.add_row(Text(str(shown)), Text(run.objective), *cells, age(now - run.changed))
    return table


def age(seconds: float) -> str:
    """Seconds in the largest unit that fits at least twice, or once where none does: 45 s, 3 h, 12 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def _listed(directory: Path) -> Listed | None:
    records, config = directory / RECORDS_FILE, directory / CONFIG_FILE
    times = []
    for path in (records, config):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    if not times:  # deleted since it was found
        return None
    found: list[LayerRecord] = []
    notices: list[str] = []
    objective = "?"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        try:
            found = read_records(records) if records.exists() else []
            objective = trained_how(read_configuration(directory)) or "?"
        except UserError as error:
            notices.append(str(error))
    notices += [str(warning.message) for warning in warned]
    validations = [record for record in found if record.stage == "validate"] or found
    last = validations[-1] if validations else None
    return Listed(directory, objective, last, max(times), " ".join(notices) or None)


def _measured(record: LayerRecord | None) -> dict[str, str]:
    """By the column's name: the last layer's worth, and the first number that is a layer; empty what is not known."""
    if record is None:
        return {"epoch": ""}
    shown = {"epoch": str(record.epoch)}
    if record.worth is not None:
        shown[record.worth] = three(record.values(record.worth)[-1])
    depths = [each for each in record.quantities.values() if each.unit == LAYER and isinstance(each.values, int)]
    if depths:
        shown["depth"] = told(depths[0].values, LAYER, record.layers, record.samples)
    return shown
