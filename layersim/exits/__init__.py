"""Early exit: policies to leave by, and thresholds that keep a promise."""

from layersim.exits.budget import best_within
from layersim.exits.calibration import Calibration, Method, calibrate, check_promise
from layersim.exits.curve import ExitCurve, exit_curve
from layersim.exits.policies import (
    POLICIES,
    Confidence,
    Entropy,
    Margin,
    Patience,
    Policy,
    Similarity,
    View,
    exit_layer,
    next_streak,
)
from layersim.exits.risks import Risk
from layersim.exits.runner import EarlyExit, Exited
from layersim.exits.speed import Speed, measure_speed
from layersim.exits.summary import ExitSummary, summarize
from layersim.exits.table import ExitTable, exit_table, join_tables
from layersim.exits.temperature import fit_temperatures, split_for_temperatures

__all__ = [
    "POLICIES",
    "Calibration",
    "Confidence",
    "EarlyExit",
    "Entropy",
    "ExitCurve",
    "ExitSummary",
    "ExitTable",
    "Exited",
    "Margin",
    "Method",
    "Patience",
    "Policy",
    "Risk",
    "Similarity",
    "Speed",
    "View",
    "best_within",
    "calibrate",
    "check_promise",
    "exit_curve",
    "exit_layer",
    "exit_table",
    "fit_temperatures",
    "join_tables",
    "measure_speed",
    "next_streak",
    "split_for_temperatures",
    "summarize",
]
