"""`token_exits.json`: what `layersim exits` found for a run's language model."""

from dataclasses import dataclass
from typing import Any, ClassVar

from rich.table import Table

from layersim.report.json_report import ONE, Report
from layersim.report.terminal import plain_table


@dataclass(frozen=True, kw_only=True)
class TokenExitReport(Report):
    """A threshold for a language model's tokens, and how much sooner it writes."""

    FILE: ClassVar[str] = "token_exits.json"
    VERB: ClassVar[str] = "exits"
    FORMS: ClassVar[dict[str, Any]] = {
        "calibration": {
            **dict.fromkeys(("target", "confidence", "observed_risk", "bound", "mean_exit_layer", "layer_gain"), ONE),
            "tried": [dict.fromkeys(("threshold", "mean_exit_layer", "risk", "bound"), ONE)],
        },
        "speed": [dict.fromkeys(("batch_size", "seconds", "full_seconds", "wall_gain", "layer_gain"), ONE)],
    }

    calibration: dict[str, Any]
    """As `layersim.exits.TokenCalibration` has it."""
    speed: list[dict[str, float]]
    """As `layersim.exits.TokenSpeed` has it, a batch size each; empty where nothing was timed."""
    device: str
    head: str
    """The class of the head."""
    objective: str
    """The class of the objective that it was trained with."""
    weights: str
    """By which the model is known again: its fingerprint."""
    precision: str
    """In which it was read, as Lightning names it."""


def tried_table(report: TokenExitReport) -> Table:
    """The thresholds in the order in which they were tried; the last that keeps the target is the answer."""
    found = report.calibration
    rows = [
        (f"{one['threshold']:.6g}", f"{one['mean_exit_layer']:.2f}", f"{one['risk']:.4f}", f"{one['bound']:.4f}")
        for one in found["tried"]
    ]
    headings = ("threshold", "mean exit layer", str(found["risk"]), "its upper bound")
    caption = f"The bound may be {found['target']:g} at most."
    table = plain_table(headings, rows, title="thresholds tried", caption=caption)
    for row, tried in zip(table.rows, found["tried"], strict=True):
        row.style = "bold" if tried["threshold"] == found["threshold"] else None
    return table


def speed_table(report: TokenExitReport) -> Table:
    """Tokens a second with exits and without, a row a batch size."""
    rows = [
        (
            f"{one['batch_size']:.0f}",
            *(f"{1 / one[key]:.0f}" for key in ("seconds", "full_seconds")),
            *(f"{one[key]:.2f}" for key in ("wall_gain", "layer_gain")),
        )
        for one in report.speed
    ]
    headings = ("texts at a time", "tokens/s with exits", "without", "gain", "layer gain")
    caption = "Without: transformers' own greedy generate, in turns on this machine."
    return plain_table(headings, rows, title="writing", caption=caption)
