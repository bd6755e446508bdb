"""`token_exits.json`: what `layersim exits` found for a run's language model."""

from dataclasses import dataclass
from typing import Any, ClassVar

from rich.table import Table

from layersim.report.json_report import ONE, Report

TOKEN_EXITS_FILE = "token_exits.json"


@dataclass(frozen=True, kw_only=True)
class TokenExitReport(Report):
    """A threshold for a language model's tokens, and how much sooner it writes."""

    FILE: ClassVar[str] = TOKEN_EXITS_FILE
    VERB: ClassVar[str] = "exits"
    FORMS: ClassVar[dict[str, Any]] = {
        "calibration": dict.fromkeys(("target", "confidence", "bound", "mean_exit_layer", "layer_gain"), ONE),
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
    table = Table(title="thresholds tried", caption=f"The bound may be {found['target']:g} at most.")
    for name in ("threshold", "mean exit layer", str(found["risk"]), "its upper bound"):
        table.add_column(name, justify="right")
    for tried in found["tried"]:
        chosen = "bold" if tried["threshold"] == found["threshold"] else None
        cells = (f"{tried['threshold']:.6g}", f"{tried['mean_exit_layer']:.2f}", f"{tried['risk']:.4f}")
        table.add_row(*cells, f"{tried['bound']:.4f}", style=chosen)
    return table


def speed_table(report: TokenExitReport) -> Table:
    """Tokens a second with exits and without, a row a batch size."""
    table = Table(title="writing", caption="Without: transformers' own greedy generate, in turns on this machine.")
    for name in ("texts at a time", "tokens/s with exits", "without", "gain", "layer gain"):
        table.add_column(name, justify="right")
    for speed in report.speed:
        rates = (f"{1 / speed['seconds']:.0f}", f"{1 / speed['full_seconds']:.0f}")
        table.add_row(f"{speed['batch_size']:.0f}", *rates, f"{speed['wall_gain']:.2f}", f"{speed['layer_gain']:.2f}")
    return table
