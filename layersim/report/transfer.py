"""`transfer.json`: how a model's layers do on shifted images and on another task. Letter: L layers."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.table import Table

from layersim.report.configuration import without_loading
from layersim.report.drawing.pictures import COLORS, Picture, beside, curves
from layersim.report.json_report import BY_LAYER, COUNT, ONE, Report
from layersim.report.quantity import curve
from layersim.report.terminal import table_by_layer

UNITS = {"rotation": "degrees", "noise": "standard deviations", "blur": "of the width"}

_STRENGTHS = ("#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")


@dataclass(frozen=True, kw_only=True)
class TransferReport(Report):
    """Accuracies by layer, first layer first."""

    FILE: ClassVar[str] = "transfer.json"
    VERB: ClassVar[str] = "transfer"
    FORMS: ClassVar[dict[str, Any]] = {
        "shifts": {str: [{"strength": ONE, "accuracy": BY_LAYER}]},
        "probe": (
            None,
            dict.fromkeys(("classes", "train_samples", "samples"), COUNT)
            | {"penalty": BY_LAYER, "accuracy": BY_LAYER, "data": {}},
        ),
    }

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
