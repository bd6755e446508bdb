"""`transfer.json`: how a model's layers do on shifted images and on another task. Letter: L layers."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from layersim.errors import UserError
from layersim.report.configuration import without_loading
from layersim.report.drawing.canvas import (
    COLORS,
    GRID,
    INK,
    TICK_SIZE,
    layer_ticks,
    place,
    sheet,
    write_labels,
    write_title,
)
from layersim.report.json_report import read_report, write_report
from layersim.report.numbers import expect_numbers, expect_shapes
from layersim.report.terminal import Beside

TRANSFER_FILE = "transfer.json"

UNITS = {"rotation": "degrees", "noise": "standard deviations", "blur": "of the width"}

_LEFT, _WIDTH, _HEIGHT, _GAP, _KEY = (
    0.65,
    3.1,
    2.6,
    0.3,
    0.55,
)  # inches: a panel, what lies between two, the legend below


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
    path = directory / TRANSFER_FILE
    if not path.is_file():
        return None
    try:
        return TransferReport(**read_report(path, (field.name for field in fields(TransferReport))))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged; run `layersim transfer` again. {error}") from error


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
    table = Table(
        title=Beside(report.model),
        caption=Beside("; ".join(filter(None, told))),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("layer", justify="right", vertical="bottom")
    for name in columns:
        table.add_column(Text(name), justify="right", vertical="bottom")
    for layer in range(report.layers):
        table.add_row(str(layer + 1), *(f"{values[layer]:.3f}" for values in columns.values()))
    return table


def transfer_figure(report: TransferReport) -> Figure:
    """Accuracy by layer: a panel a shift, a line a strength, the stronger the darker; the probe in its own panel."""
    panels = len(report.shifts) + (report.probe is not None)
    figure = sheet(_LEFT + panels * (_WIDTH + _GAP), _KEY + 0.55 + _HEIGHT + 0.45)
    for number, (kind, steps) in enumerate(report.shifts.items()):
        axes = _panel(figure, number, report.layers, kind.capitalize())
        assert report.accuracy is not None
        _draw(axes, report.accuracy, "as they are", INK, style="--")
        for step, color in zip(steps, _shades(len(steps)), strict=True):
            _draw(axes, step["accuracy"], f"{step['strength']:g}", color)
        _key(axes, UNITS.get(kind, ""), columns=3)
    if report.probe is not None:
        axes = _panel(figure, panels - 1, report.layers, "Another task, linear probe")
        _draw(axes, report.probe["accuracy"], f"{report.probe['classes']} classes", COLORS[2])
        _key(axes, "", columns=1)
    return figure


def _panel(figure: Figure, number: int, layers: int, title: str) -> Axes:
    axes = place(figure, _LEFT + number * (_WIDTH + _GAP), _KEY + 0.55, _WIDTH, _HEIGHT)
    write_title(axes, title)
    write_labels(axes, "layer", "" if number else "accuracy")
    axes.set_xlim(0.5, layers + 0.5)
    axes.set_xticks(layer_ticks(layers))
    axes.set_ylim(0, 1)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    if number:
        axes.tick_params(labelleft=False)
    return axes


def _draw(axes: Axes, accuracy: list[float], label: str, color: Any, style: str = "-") -> None:
    layers = range(1, len(accuracy) + 1)
    axes.plot(layers, accuracy, style, color=color, marker="o", markersize=3.5, label=label, clip_on=False)


def _shades(count: int) -> list[Any]:
    light_to_dark = LinearSegmentedColormap.from_list("strength", ["#9ecae9", "#08306b"])
    return [light_to_dark(step / max(1, count - 1)) for step in range(count)]


def _key(axes: Axes, unit: str, *, columns: int) -> None:
    axes.legend(
        title=unit,
        title_fontsize=TICK_SIZE,
        ncols=columns,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        frameon=False,
        fontsize=TICK_SIZE,
        labelcolor=INK,
        handlelength=1.4,
        columnspacing=1,
        borderpad=0,
    )
