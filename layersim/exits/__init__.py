"""Early exit: policies to leave by, and thresholds that keep a promise."""

from layersim.exits.alarm import Alarm
from layersim.exits.calibration import (
    Calibration,
    Method,
    best_within,
    calibrate,
    calibrate_together,
    check_promise,
    check_targets,
)
from layersim.exits.curve import ExitCounts, ExitCurve, accuracy_at, exit_counts, exit_curve, exit_curve_area
from layersim.exits.gathered import Gathered
from layersim.exits.generation import TokenExit, Written
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
from layersim.exits.reference import Reference, reference_of
from layersim.exits.runner import EarlyExit, Exited
from layersim.exits.shift import Shift, estimate_shift
from layersim.exits.speed import Speed, TokenSpeed, measure_speed, measure_token_speed
from layersim.exits.table import ExitSummary, ExitTable, Risk, calibrations, exit_table, join_tables, summarize
from layersim.exits.temperature import fit_temperatures, split_for_temperatures
from layersim.exits.token_calibration import TokenCalibration, calibrate_tokens

__all__ = [
    "POLICIES",
    "Alarm",
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
    "Reference",
    "Risk",
    "Shift",
    "Similarity",
    "Speed",
    "TokenCalibration",
    "TokenExit",
    "TokenSpeed",
    "View",
    "Way",
    "Written",
    "accuracy_at",
    "best_within",
    "calibrate",
    "calibrate_together",
    "calibrate_tokens",
    "calibrations",
    "check_promise",
    "check_targets",
    "estimate_shift",
    "exit_counts",
    "exit_curve",
    "exit_curve_area",
    "exit_layer",
    "exit_table",
    "fit_temperatures",
    "join_tables",
    "measure_costs",
    "measure_speed",
    "measure_token_speed",
    "next_streak",
    "plan_exits",
    "reference_of",
    "split_for_temperatures",
    "summarize",
]
