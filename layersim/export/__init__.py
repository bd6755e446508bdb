"""Exports: stock checkpoints and programs of a model, whole, truncated or without some blocks."""

from layersim.export.destination import RECORD_FILE, check_destination
from layersim.export.exporting import export_as
from layersim.export.leaving import export_leaving
from layersim.export.removal import Removal, RemovalTrial, Score, feature_changes, propose_removal, try_removal
from layersim.export.replacement import replace_linear
from layersim.export.serving import Serving
from layersim.export.truncation import truncate

__all__ = [
    "RECORD_FILE",
    "Removal",
    "RemovalTrial",
    "Score",
    "Serving",
    "check_destination",
    "export_as",
    "export_leaving",
    "feature_changes",
    "propose_removal",
    "replace_linear",
    "truncate",
    "try_removal",
]
