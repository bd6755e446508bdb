"""Early exit: policies to leave by, and thresholds that keep a promise."""

from layersim.exits.calibration import Calibration, Method, best_within, calibrate, check_promise
from layersim.exits.curve import ExitCounts, ExitCurve, accuracy_at, exit_counts, exit_curve, exit_curve_area
from layersim.exits.gathered import Gathered
from layersim.exits.plan import Costs, ExitPlan, Way, measure_costs, plan_exits
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
from layersim.exits.runner import EarlyExit, Exited
from layersim.exits.speed import Speed, measure_speed
from layersim.exits.table import ExitSummary, ExitTable, Risk, calibrations, exit_table, join_tables, summarize
from layersim.exits.temperature import fit_temperatures, split_for_temperatures

__all__ = [
    "POLICIES",
    "Calibration",
    "Confidence",
    "Costs",
    "EarlyExit",
    "Entropy",
    "ExitCounts",
    "ExitCurve",
    "ExitPlan",
    "ExitSummary",
    "ExitTable",
    "Exited",
    "Gathered",
    "Margin",
    "Method",
    "Patience",
    "Policy",
    "Risk",
    "Similarity",
    "Speed",
    "View",
    "Way",
    "accuracy_at",
    "best_within",
    "calibrate",
    "calibrations",
    "check_promise",
    "exit_counts",
    "exit_curve",
    "exit_curve_area",
    "exit_layer",
    "exit_table",
    "fit_temperatures",
    "join_tables",
    "measure_costs",
    "measure_speed",
    "next_streak",
    "plan_exits",
    "split_for_temperatures",
    "summarize",
]
