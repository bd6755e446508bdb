"""What `layersim exits` found, as the record that is written, drawn and compared. Letters: L layers, N samples."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from layersim.exits import Calibration, EarlyExit, ExitSummary, ExitTable, exit_curve, measure_speed
from layersim.exits.policies import Policy
from layersim.metrics import mean_saturation_layer, saturation_layer
from layersim.module import LayerwiseModule
from layersim.report.exits import ExitReport
from layersim.report.tradeoff import tradeoff_table
from layersim.runs.parameters import parameters_of

_TIMED = 5
"""Thresholds that are timed beside the chosen one, evenly spread over the mean exit layer."""


def report_of(
    module: LayerwiseModule,
    table: ExitTable,
    policy: Policy,
    found: ExitSummary,
    temperatures: Tensor | None,
    thresholds: Sequence[float],
    *,
    seed: int,
    device: str,
) -> ExitReport:
    """The record of a threshold that was found on a table, without speeds."""
    layers, samples = table.scores.shape
    oracle = mean_saturation_layer(saturation_layer(table.predictions).bincount(minlength=layers + 1)[1:])
    promise = ("method", "risk", "target", "confidence", "observed_risk", "bound")
    return ExitReport(
        policy=policy.name,
        threshold=found.threshold,
        temperatures=None if temperatures is None else temperatures.tolist(),
        layers=layers,
        samples=samples,
        mean_exit_layer=found.mean_exit_layer,
        layer_gain=found.layer_gain,
        exits=list(found.exits),
        accuracy=found.accuracy,
        full_accuracy=found.full_accuracy,
        loss=found.loss,
        full_loss=found.full_loss,
        promise={key: getattr(found, key) for key in promise} if isinstance(found, Calibration) else None,
        curve=vars(exit_curve(table, thresholds, seed=seed)),
        speed=[],
        batch_size=None,
        device=device,
        oracle={"mean_exit_layer": oracle, "layer_gain": layers / oracle},
        parameters=parameters_of(module),
        head=type(module.head).__name__,
        objective=type(module.objective).__name__,
    )


def with_speeds(
    report: ExitReport,
    module: LayerwiseModule,
    policy: Policy,
    temperatures: Tensor | None,
    batches: Sequence[Mapping[str, Any]],
) -> ExitReport:
    """The record with seconds, measured on the batches: of the chosen threshold first, then along the curve."""
    curve = report.curve
    spread = [1 + (report.layers - 1) * step / (_TIMED - 1) for step in range(_TIMED)]
    nearest = [
        min(range(len(curve["threshold"])), key=lambda point: abs(curve["mean_exit_layer"][point] - depth))
        for depth in spread
    ]
    chosen = {"threshold": report.threshold, "mean_exit_layer": report.mean_exit_layer, "accuracy": report.accuracy}
    points = [chosen, *({key: curve[key][point] for key in chosen} for point in dict.fromkeys(nearest))]
    runs = [EarlyExit(module.backbone, module.head, policy, point["threshold"], temperatures) for point in points]
    speeds = measure_speed(module.backbone, module.head, runs, batches)
    measured = [
        {**point, "layer_gain": report.layers / point["mean_exit_layer"], **vars(speed)}
        for point, speed in zip(points, speeds, strict=True)
    ]
    return replace(report, speed=measured, batch_size=len(next(iter(batches[0].values()))))


def show(report: ExitReport, found: ExitSummary, path: Path) -> None:
    """On the terminal: what was found, what it means, and where it is written."""

    console = Console()
    console.print(found.explain() if isinstance(found, Calibration) else found.describe())
    early = 1 - report.exits[-1] / report.samples
    hint = " The model was trained at its last layer alone." if report.objective == "LastLayer" else ""
    console.print(f"{early:.1%} of the samples leave before the last layer.{hint}")
    console.print(tradeoff_table({path.parent.name: report}))
    console.print(f"Threshold, curve and speeds: {path}", soft_wrap=True)
