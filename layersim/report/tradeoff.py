"""Accuracy against what it costs, in layers and in time: curves, a picture, and a table of runs side by side."""

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from layersim.errors import UserError
from layersim.report.drawing.pictures import Picture, beside, curves
from layersim.report.exits import CALIBRATION, ExitReport
from layersim.report.quantity import Quantity, curve, three
from layersim.report.terminal import SideBySide, gathered, plain_table, table_by_layer

_NOTE = "Bands: 95 % bootstrap over samples, at each threshold. Large marks: the threshold that was chosen."
BY_LAYER, BY_TIME = "mean exit layer", "milliseconds a sample"


def tradeoffs(reports: Mapping[str, ExitReport]) -> dict[str, tuple[dict[str, Quantity], list[dict[str, object]]]]:
    """Accuracy by mean exit layer, with 95 % bootstrap bands, and by measured time where a run was timed, by what it is
    drawn along: curves by the run's name, and a row where each threshold that was chosen lies. The axis of accuracies
    holds all curves and bands, to a tenth."""
    held = [end for one in reports.values() for pair in one.curve["accuracy_interval"] for end in pair]
    held += [point["accuracy"] for one in reports.values() for point in one.speed]
    held += [one.accuracy for one in reports.values()]
    low = math.floor(10 * min(held)) / 10
    ends = (low, max(math.ceil(10 * max(held)) / 10, low + 0.1))
    found: dict[str, tuple[dict[str, Quantity], list[dict[str, object]]]] = {BY_LAYER: ({}, [])}
    alike: dict[str, Any] = {"axes": ("threshold",), "range": ends, "better": "higher"}
    for name, report in reports.items():
        mark = {"y": name, "series": name, "value": report.accuracy, "at": "chosen", "chosen": True}
        below, above = zip(*report.curve["accuracy_interval"], strict=True)
        ticks = {"threshold": report.curve["threshold"], BY_LAYER: report.curve["mean_exit_layer"]}
        interval = {"confidence": 0.95, "low": list(below), "high": list(above)}
        shown, chosen = found[BY_LAYER]
        shown[name] = Quantity(values=report.curve["accuracy"], ticks=ticks, interval=interval, **alike)
        chosen.append({"x": report.mean_exit_layer} | mark)
        if speed := sorted(report.speed, key=lambda one: float(one["mean_exit_layer"])):
            ticks = {"threshold": [one["threshold"] for one in speed]}
            ticks[BY_TIME] = [1000 * one["seconds"] for one in speed]
            shown, chosen = found.setdefault(BY_TIME, ({}, []))
            shown[name] = Quantity(values=[one["accuracy"] for one in speed], ticks=ticks, **alike)
            chosen += [{"x": 1000 * one["seconds"]} | mark for one in speed if one["threshold"] == report.threshold]
    return found


def tradeoff_figure(reports: Mapping[str, ExitReport]) -> Picture:
    """The curves side by side; large marks are the thresholds that were chosen.

    Raises:
        UserError: there is no run.
    """
    if not reports:
        raise UserError("Expected one run with exits or more to draw the trade-off of, but got none.")
    drawn = [
        curves(shown, f"Accuracy by {along}", series=[*reports], more=chosen)
        for along, (shown, chosen) in tradeoffs(reports).items()
    ]
    note = {"text": _NOTE, "orient": "bottom", "fontSize": 11, "offset": 12}
    return beside(drawn, 2, title=note)


def tradeoff_table(reports: Mapping[str, ExitReport]) -> SideBySide:
    """Runs side by side: the threshold, where samples left, what that gained in layers and in time, and at what cost.

    Args:
        reports: by the run's name. A cell is empty where nothing was measured.
    """
    rows = gathered([exit_summary(report) for report in reports.values()])
    return SideBySide("exits", list(reports), rows, least=12)


def calibration_curves(reports: Mapping[str, ExitReport]) -> dict[str, dict[str, Quantity]]:
    """What is told of each layer's calibration, in words, and of it by the run's name a curve without temperatures and,
    where there are any, one with them."""
    ends = {"error": (0, 1), "brier": (0, 2), "overconfidence": (-1, 1)}
    found: dict[str, dict[str, Quantity]] = {label: {} for label in CALIBRATION.values()}
    for name, report in reports.items():
        whens = {"before": ", untempered", "after": ""} if report.temperatures else {"after": ""}
        for when, suffix in whens.items():
            for key, label in CALIBRATION.items():
                found[label][name + suffix] = curve(report.calibration[when][key], range=ends[key])
    return found


def calibration_table(report: ExitReport) -> Table:
    """How sure each layer is against how right, on the samples of the threshold; without → with its temperature."""
    columns = {
        label: zip(*(each.values for each in shown.values()), strict=True)
        for label, shown in calibration_curves({"": report}).items()
    }
    cells = ((label, [" → ".join(map(three, values)) for values in column]) for label, column in columns.items())
    return table_by_layer("", "Without its temperature → with it." if report.temperatures else "", cells)


def choices_table(report: ExitReport) -> Table:
    """A row for each target: its threshold, what was promised, and what leaving by it did to the samples."""
    rows = [
        (
            f"{one['target']:g}",
            "none" if one["threshold"] is None else f"{one['threshold']:.6g}",
            f"{one['bound']:.3g}",
            f"{one['mean_exit_layer']:.2f}",
            f"{one['layer_gain']:.2f}",
            f"{one['accuracy']:.3f}",
        )
        for one in report.choices
    ]
    headings = ("risk ≤", "threshold", "bound", "mean exit layer", "layer gain", "accuracy")
    return plain_table(headings, rows, title="Promised together")


def plan_table(report: ExitReport) -> SideBySide:
    """Milliseconds a sample of each way that reaches the accuracy asked for, by batch size; and, below, from where on
    exits pay, and how far the prediction was off."""
    plan: dict[str, Any] = report.plan or {}
    ways, sizes = plan["ways"], [str(size) for size in plan["sizes"]]
    rows = {"accuracy": [f"{way['accuracy']:.3f}" for way in ways], "layers": [f"{way['layers']:.2f}" for way in ways]}
    for place, size in enumerate(sizes):
        seconds = [way["seconds"][place] for way in ways]
        best = min(seconds)
        rows[f"ms, batch {size}"] = [f"{1000 * each:.3g}{' *' if each == best else ''}" for each in seconds]
    pays = plan["pays_from"]
    exits = next((way for way in ways if way["name"] == "exits"), None)
    if exits is None:
        told = f"No threshold reaches {plan['asked']:.3f}."
    else:
        at = f"Exits at {plan['asked']:.3f} ({report.policy} ≥ {exits['threshold']:.4g}, without a promise)"
        told = f"{at} pay at no batch up to {sizes[-1]}." if pays is None else f"{at} pay from batch {pays} on."
    up_to = plan["pays_up_to"]
    most = "no exits pay" if up_to is None else f"they pay up to an accuracy of {up_to:.3f}"
    told += f" At batch {sizes[-1]} {most}."
    ratio = plan["predicted"] / plan["measured"]
    predicted, measured = (f"{1000 * plan[key]:.3g}" for key in ("predicted", "measured"))
    told += (
        " * is fastest. Predicted of what a layer, a head and taking samples out of a batch cost here. At the chosen "
        f"threshold {predicted} ms were predicted, {measured} measured: {ratio:.2f}."
    )
    headings = [way["name"] for way in ways]
    return SideBySide("plan", headings, rows, least=10, last_of_first="layers", note=told)


def exit_summary(report: ExitReport) -> dict[str, str]:
    """What a table or a page says of a run's exits, by name."""
    promise, parameters = report.promise, report.parameters
    separate = parameters["model"] == parameters["separate_heads"]
    summary = {
        "policy": report.policy,
        "threshold": "none" if report.threshold is None else f"{report.threshold:.6g}",
        "chosen by": "budget" if promise is None else f"{promise['risk']} ≤ {promise['target']:g}",
        "and for": ", ".join(f"≤ {one['target']:g}" for one in report.choices[1:]),
        "samples": f"{report.samples:,}",
        "as of new data": "" if report.shift is None else f"{report.shift['effective_samples']:.0f}",
        "mean exit layer": f"{report.mean_exit_layer:.2f} of {report.layers}",
        "layer gain": f"{report.layer_gain:.2f}",
        "measured gain": "" if report.wall_gain is None else f"{report.wall_gain:.2f}",
        "timed on": "" if report.batch_size is None else f"{report.device}, batch {report.batch_size}",
        "accuracy at exits": f"{report.accuracy:.3f}",
        "full accuracy": f"{report.full_accuracy:.3f}",
        "parameters": f"{parameters['model']:,}",
        "saved by one head": "0.0%" if separate else f"{parameters['share_saved']:.1%}",
    }
    return {row: cell for row, cell in summary.items() if cell}
