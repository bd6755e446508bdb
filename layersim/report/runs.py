"""Which runs are there, and what became of each."""

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table

from layersim.errors import UserError
from layersim.report.across import AcrossReport
from layersim.report.configuration import (
    CONFIG_FILE,
    below,
    last_validation,
    model_of,
    read_configuration,
    trained_how,
)
from layersim.report.environment import read_environment
from layersim.report.exits import ExitReport
from layersim.report.lens import LENS_FILE
from layersim.report.quantity import LAYER, three, told
from layersim.report.records import RECORDS_FILE, LayerRecord, read_records
from layersim.report.terminal import gathered, plain_table
from layersim.report.token_exits import TokenExitReport
from layersim.report.transfer import TransferReport

_REPORTS = (ExitReport, TokenExitReport, TransferReport, AcrossReport)
_WRITE = {LENS_FILE: "lens"} | {report.FILE: report.VERB for report in _REPORTS}
"""Files by which a verb is known, whatever made the directory."""
_FILES = {RECORDS_FILE, CONFIG_FILE, *_WRITE}
_LEAST_LAST = ("epoch", "model", "depth", "objective", "perplexity")
"""Columns that give way, in this order."""
_HEAD = 3  # lines of a table above its rows


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
    verbs: tuple[str, ...] = ()
    """Those that wrote into it, the one that made it first."""
    model: str = ""
    """Its name, or what it is made of."""
    resumable: bool = False
    """Whether it is a training that has saved a checkpoint and has epochs left."""


def find_runs(roots: Sequence[Path]) -> list[Listed]:
    """The runs at or below these directories, the one that wrote last first. A broken one is listed, with a notice."""
    homes, seen = set[Path](), set[str]()
    for root in roots:
        if not root.is_dir():
            raise UserError(f"expected a directory of runs, got {root}, which is none.")
    for links, root in product((False, True), roots):  # a run is shown by its own name, where it has one here
        walked = set[str]()  # links may lead back
        # passes over folders that may not be read, or are gone again
        for home, folders, files in os.walk(root, followlinks=links):
            is_run, real = not _FILES.isdisjoint(files), os.path.realpath(home)
            # in a folder wandb W&B keeps a config.yaml of a run's own; what a run links to is its data
            folders[:] = [
                name for name in folders if name != "wandb" and not (is_run and os.path.islink(f"{home}/{name}"))
            ]
            if real in walked:
                folders.clear()
            elif is_run and real not in seen:
                homes.add(Path(home))
                seen.add(real)
            walked.add(real)
    found = (_listed(home) for home in homes)
    return sorted((run for run in found if run), key=lambda run: (-run.changed, run.directory))


@dataclass(frozen=True)
class RunsTable:
    """A row a run: the verbs that made it, its model and objective, epoch and accuracy (the last layer's) of its last
    validation, where there are language models perplexity too, effective depth, age (since it last wrote), and whether
    it can go on.

    Where the terminal is too narrow the directory stands below its row, so that it can be copied, and what matters
    least is left out.
    """

    runs: Sequence[Listed]
    now: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = self._columns()
        wide = {"run": [f"{run.directory}" for run in self.runs], **columns}
        if _width(console, wide) <= options.max_width:
            yield _table(wide)
            return
        columns.pop("goes on", None)
        for name in _LEAST_LAST:
            if name in columns and _width(console, columns) > options.max_width:
                del columns[name]
        rows = console.render_lines(_table(columns), options.update(no_wrap=True), pad=False)
        for number, line in enumerate(rows):
            yield from line
            yield Segment.line()
            if 0 <= number - _HEAD < len(self.runs):
                run = self.runs[number - _HEAD]
                yield Segment(f"  {run.directory}{'  (can go on)' if run.resumable else ''}\n")

    def _columns(self) -> dict[str, list[str]]:
        measured = gathered([_measured(run.record) for run in self.runs])
        told = {
            "verb": [", ".join(run.verbs) for run in self.runs],
            "model": [run.model for run in self.runs],
            "objective": [run.objective for run in self.runs],
            **measured,
            "age": [age(self.now - run.changed) for run in self.runs],
            "goes on": ["can" if run.resumable else "" for run in self.runs],
        }
        return {name: cells for name, cells in told.items() if any(cells) or name == "epoch"}


def _table(columns: Mapping[str, Sequence[str]]) -> Table:
    return plain_table(
        [*columns], zip(*columns.values(), strict=True), left=("run", "verb", "model", "objective"), no_wrap=True
    )


def _width(console: Console, columns: Mapping[str, Sequence[str]]) -> int:
    return console.measure(_table(columns), options=console.options.update(max_width=1000)).maximum


def age(seconds: float) -> str:
    """Seconds in the largest unit that fits at least twice, or once where none does: 45 s, 3 h, 12 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def _listed(directory: Path) -> Listed | None:
    records = directory / RECORDS_FILE
    times = []
    for path in (directory / name for name in sorted(_FILES)):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    if not times:  # deleted since it was found
        return None
    found: list[LayerRecord] = []
    notices: list[str] = []
    objective, made, config = "?" if (directory / CONFIG_FILE).exists() else "", "", dict[str, Any]()
    with warnings.catch_warnings(record=True, action="always", category=UserWarning) as warned:
        try:
            found = read_records(records) if records.exists() else []
            config = read_configuration(directory)
            objective = trained_how(config)
            made = str((read_environment(directory) or {}).get("verb", ""))
        except UserError as error:
            notices.append(str(error))
    notices += [str(warning.message) for warning in warned]
    validations = [record for record in found if record.stage == "validate"] or found
    last = validations[-1] if validations else None
    wrote = [verb for file, verb in _WRITE.items() if (directory / file).exists()]
    verbs = tuple(dict.fromkeys(filter(None, [made, *wrote])))
    left = made == "fit" and _has_epochs_left(config, last) and any((directory / "checkpoints").glob("*.ckpt"))
    return Listed(directory, objective, last, max(times), " ".join(notices) or None, verbs, model_of(config), left)


def _has_epochs_left(config: Mapping[str, Any], last: LayerRecord | None) -> bool:
    """Whether a training ended, or was last heard of, before its last validation or step."""
    if last is None:
        return True
    final, steps = last_validation(config), below(config, "trainer").get("max_steps")
    by_epochs = final is None or last.epoch < final
    return by_epochs and (not isinstance(steps, int) or steps < 0 or last.step < steps)


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
