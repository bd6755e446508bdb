"""`transfer.json`: how a model's layers do on shifted images and on another task. Letter: L layers."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from layersim.errors import UserError
from layersim.report.configuration import without_loading
from layersim.report.drawing.pictures import COLORS, Picture, beside, curves
from layersim.report.json_report import read_report, write_report
from layersim.report.numbers import expect_numbers, expect_shapes
from layersim.report.quantity import curve
from layersim.report.terminal import table_by_layer

TRANSFER_FILE = "transfer.json"

UNITS = {"rotation": "degrees", "noise": "standard deviations", "blur": "of the width"}

_STRENGTHS = ("#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")


@dataclass(frozen=True, kw_only=True)
class TransferReport:
    """Accuracies by layer, first layer first.

    Raises:
        UserError: a key is missing, or a list is not L numbers; the key is named.
    """

    model: str
    """As it was given."""
    layers: int
    """L."""
    split: str
    data: dict[str, Any]
    """The recipe's section `data` of the images that were shifted."""
    samples: int
    """Images."""
    accuracy: list[float] | None
    """L, of the model's own head on images as they are; None where the data are no images."""
    shifts: dict[str, list[dict[str, Any]]]
    """By shift its `strength`, and the `accuracy` at L layers under it, the weakest first."""
    probe: dict[str, Any] | None
    """Linear probes of another task: its `data`, `classes`, `train_samples`, `samples`, `penalty` (L, the inverse of
    scikit-learn's C that was chosen) and `accuracy` (L, on held-out samples); None where there is none."""

    def __post_init__(self) -> None:
        for key in ("layers", "samples"):
            expect_numbers(key, getattr(self, key), (), counts=True)
        if self.accuracy is not None:
            expect_numbers("accuracy", self.accuracy, (self.layers,))
        if not isinstance(self.shifts, Mapping) or not all(isinstance(steps, list) for steps in self.shifts.values()):
            raise UserError(f"shifts: expected a list for each shift, got {self.shifts!r}.")
        for kind, steps in self.shifts.items():
            for place_, step in enumerate(steps):
                expect_shapes(f"shifts.{kind}[{place_}]", step, {"strength": (), "accuracy": (self.layers,)})
        if self.probe is not None:
            counts = ("classes", "train_samples", "samples")
            by_layer = dict.fromkeys(("penalty", "accuracy"), (self.layers,))
            expect_shapes("probe", self.probe, {**dict.fromkeys(counts, ()), **by_layer}, counts=counts)
            if not isinstance(self.probe.get("data"), Mapping):
                raise UserError(f"probe.data: expected the section of a recipe, got {self.probe.get('data')!r}.")

    @property
    def shift_settings(self) -> str:
        """What of shifted images was measured, and how: records in which this is alike compare."""
        strengths = {kind: [step["strength"] for step in steps] for kind, steps in self.shifts.items()}
        told = [self.layers, self.split, without_loading(self.data), self.samples, strengths]
        return json.dumps(told, sort_keys=True)

    @property
    def probe_settings(self) -> str:
        """The same of the linear probes."""
        probe = self.probe or {}
        counts = [probe.get(key) for key in ("classes", "train_samples", "samples")]
        return json.dumps([self.layers, self.split, without_loading(probe.get("data")), counts], sort_keys=True)


def write_transfer_report(directory: Path, report: TransferReport) -> Path:
    """Writes the report into a directory, a key a line, and gives the file's path."""
    return write_report(directory / TRANSFER_FILE, asdict(report))


def read_transfer_report(directory: Path) -> TransferReport | None:
    """The report in a run's directory, None where there is none; a key that this version does not know is passed over.

    Raises:
        UserError: the file cannot be read, is no JSON object, a key is missing, or a value does not fit.
    """
    return read_report(directory / TRANSFER_FILE, TransferReport, "transfer")


def transfer_table(report: TransferReport) -> Table:
    """A row a layer: accuracy on images as they are, under each shift's weakest and strongest, and of the probe."""
    columns: dict[str, list[float]] = {}
    if report.accuracy is not None:
        columns["as they\nare"] = report.accuracy
    for kind, steps in report.shifts.items():
        for step in dict.fromkeys((0, len(steps) - 1)):
            columns[f"{kind}\n{steps[step]['strength']:g}"] = steps[step]["accuracy"]
    if report.probe is not None:
        columns["linear\nprobe"] = report.probe["accuracy"]
    told = [f"{report.samples} images" if report.accuracy is not None else ""]
    if report.probe is not None:
        fitted = f"{report.probe['classes']} classes, {report.probe['train_samples']} samples"
        told.append(f"probe fitted to {fitted}, tested on {report.probe['samples']}")
    cells = ((name, [f"{value:.3f}" for value in values]) for name, values in columns.items())
    return table_by_layer(report.model, "; ".join(filter(None, told)), cells)


def transfer_figure(report: TransferReport) -> Picture:
    """Accuracy by layer: a panel a shift, a line a strength, the stronger the darker; the probe in its own panel."""
    found = {}
    for kind, steps in report.shifts.items():
        named = {f"{step['strength']:g}": step["accuracy"] for step in steps}
        unit = f" ({UNITS[kind]})" if kind in UNITS else ""
        found[f"Accuracy, {kind}{unit}"] = (
            {"as they are": report.accuracy or []} | named,
            [COLORS[1], *_STRENGTHS[-len(steps) :]],
        )
    if report.probe is not None:
        name = f"{report.probe['classes']} classes"
        found["Accuracy, another task, linear probe"] = {name: report.probe["accuracy"]}, [COLORS[2]]
    drawn = []
    for title, (lines, colors) in found.items():
        shown = {name: curve(values, label="accuracy", range=(0, 1)) for name, values in lines.items()}
        drawn.append(curves(shown, title, width=250, height=210, series=[*shown], colors=colors))
    return beside(drawn, len(drawn))
