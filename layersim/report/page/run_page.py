"""A run as its page tells it: what was read from its directory, and what of it is drawn."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from layersim.report.configuration import CONFIG_FILE, read_configuration
from layersim.report.drawing.heatmap import scale_of
from layersim.report.exits import ExitReport, read_exit_report
from layersim.report.quantity import LAYER, Quantity
from layersim.report.records import RECORDS_FILE, LayerRecord, Stage
from layersim.report.run import Run, load_run

MOST_NUMBERS = 300_000
"""On a page: about 2 MB. Runs with more (long trainings of deep models) have some of their epochs left out."""

_SHADES = 65
_RISES = {
    "cosine_rises_by_step": "cosine to the last layer",
    "target_probability_rises_by_step": "probability of the true class",
}


@dataclass(frozen=True)
class RunPage:
    """A run's directory, read for the page."""

    run: Run
    config_text: str
    """`config.yaml` as it is; empty where the run has none."""
    exits: ExitReport | None
    notices: list[str]
    """What a reader must know of the reading: a line that was lost."""

    @property
    def config(self) -> dict[str, Any]:
        """`config.yaml` parsed; empty where there is none."""
        return read_configuration(self.run.directory)


def read_run(directory: Path) -> RunPage:
    """Reads all that the page shows of a run. What an interruption has cut is left out, and a notice says so.

    Raises:
        UserError: the directory is not a run's, or a file in it is broken.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        run = load_run(directory)
    config = directory / CONFIG_FILE
    notices = [str(warning.message) for warning in told]
    if not config.is_file():
        notices.append(f"{config} is not there: the page cannot tell how this run was made.")
    return RunPage(run, config.read_text() if config.is_file() else "", read_exit_report(directory), notices)


def history(run: Run, stage: Stage) -> list[LayerRecord]:
    """The run's records of a stage by epoch and step. Of an epoch that a resumed run repeated, the later one counts."""
    latest = {(record.epoch, record.step): record for record in run.records if record.stage == stage}
    return [latest[place] for place in sorted(latest)]


def thin(records: list[LayerRecord], numbers: int) -> list[LayerRecord]:
    """The records, or, where they hold more numbers than this, as many as fit (at least two): the first, the last, and
    others at even distances between."""
    each = max(_numbers(record) for record in records)
    if each * len(records) <= numbers:
        return records
    kept = min(max(2, numbers // each), len(records))
    return [records[place] for place in np.linspace(0, len(records) - 1, kept).round().astype(int)]


def thinning_notice(name: str, kept: int, all_of_them: int) -> str:
    """What is said of a run of which `thin` left records out."""
    return f"{name}: {kept} of its {all_of_them} epochs are here, to keep the page small; {RECORDS_FILE} has them all."


def drawn(name: str, page: RunPage, records: list[LayerRecord], selected: LayerRecord) -> dict[str, Any]:
    """The run as the page's script draws it: numbers rounded to what can be seen, NaN as null.

    Args:
        name: for people.
        page: the run.
        records: those of the slider, by epoch.
        selected: the record that is shown at first; the last of its epoch where it was thinned out.
    """
    epochs = [record.epoch for record in records]
    axis = "epoch" if len(set(epochs)) == len(epochs) else "step"  # validation more often than once an epoch
    first = max(place for place, record in enumerate(records) if place == 0 or record.step <= selected.step)
    return {
        "name": name,
        "axis": axis,
        "first": first,
        "measures": list(
            dict.fromkeys(name for record in records for name, q in record.quantities.items() if q.is_matrix)
        ),
        "records": [_drawn_record(record) for record in records],
        "exits": None if page.exits is None else _drawn_exits(page.exits),
    }


def scales(records: Sequence[LayerRecord]) -> dict[str, dict[str, Any]]:
    """How each matrix, and what is like one, is coloured, as the figures colour it: name, range, and shades from low to
    high."""
    found: dict[str, list[Quantity]] = {}
    for record in records:
        for name, quantity in record.quantities.items():
            if len(quantity.axes) == 2:
                found.setdefault(name, []).append(quantity)
    every = {
        name: scale_of(each[0].name_of(name), each[0], [one.values for one in each]) for name, each in found.items()
    }
    return {
        name: {"name": scale.name, "low": scale.low, "high": scale.high, "colors": shades(scale.colors)}
        for name, scale in every.items()
    }


def shades(colors: str) -> list[str]:
    """One of matplotlib's scales of colours, as hexadecimal shades from its low to its high end."""
    return [to_hex(shade) for shade in colormaps[colors](np.linspace(0, 1, _SHADES))]


def finite(value: Any, digits: int) -> Any:
    """Numbers, in lists of any depth, rounded; what is not finite becomes None, which JSON can say."""
    if isinstance(value, list | tuple):
        return [finite(item, digits) for item in value]
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    return value


def _numbers(record: LayerRecord) -> int:
    return sum(np.size(quantity.values) for quantity in record.quantities.values())


def _drawn_record(record: LayerRecord) -> dict[str, Any]:
    depth, curve = record.quantities.get("effective_depth"), record.quantities.get("exit_curve")
    matrices = record.matrices
    earlier = {name: quantity for name, quantity in record.quantities.items() if quantity.axes == ("epoch", LAYER)}
    to_last = {name: quantity.to_last().interval for name, quantity in matrices.items() if quantity.interval}
    return {
        "epoch": record.epoch,
        "step": record.step,
        "samples": record.samples,
        "unit": record.unit,
        "layers": record.layers,
        "accuracy": finite(record.values("accuracy"), 4),
        "loss": finite(record.values("loss"), 4),
        "perplexity": finite(record.values("perplexity"), 4),
        "saturation": record.values("saturation"),
        "meanSaturationLayer": finite(record.values("mean_saturation_layer"), 3),
        "effectiveDepth": None if depth is None else {"epsilon": depth.options["epsilon"], "layer": depth.values},
        "similarity": {name: finite(quantity.values, 3) for name, quantity in matrices.items()},
        "toLastInterval": {
            name: [list(pair) for pair in zip(*(finite(ends[end], 3) for end in ("low", "high")), strict=True)]
            for name, ends in to_last.items()
            if ends is not None
        },
        "toEpoch": {name: finite(quantity.values, 3) for name, quantity in earlier.items()},
        "earlierEpochs": {name: quantity.ticks["epoch"] for name, quantity in earlier.items()},
        "rises": {name: finite(record.values(key), 3) for key, name in _RISES.items() if key in record.quantities},
        "nc1": finite(record.values("nc1"), 4),
        "exitCurve": curve and _drawn_curve(curve.ticks | {"accuracy": curve.values}),
    }


def _drawn_exits(report: ExitReport) -> dict[str, Any]:
    return {
        "policy": report.policy,
        "threshold": finite(report.threshold, 6),
        "meanExitLayer": finite(report.mean_exit_layer, 3),
        "accuracy": finite(report.accuracy, 4),
        "fullAccuracy": finite(report.full_accuracy, 4),
        "exits": report.exits,
        "curve": _drawn_curve(report.curve),
    }


def _drawn_curve(curve: dict[str, Any]) -> dict[str, Any]:
    return {
        "threshold": finite(curve["threshold"], 6),
        "meanExitLayer": finite(curve["mean_exit_layer"], 3),
        "accuracy": finite(curve["accuracy"], 4),
        "interval": finite(curve.get("accuracy_interval"), 4),
    }
