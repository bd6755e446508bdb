"""Records, figures and tables of runs. Knows what was measured, not the models: torch is never imported here."""

from layersim.report.drawing.pictures import Picture, save_picture
from layersim.report.exits import ExitReport
from layersim.report.figures import comparison, figures_of
from layersim.report.quantity import Quantity, curve, perplexity
from layersim.report.records import LayerRecord, append_record, read_records
from layersim.report.run import Run, load_run
from layersim.report.table import comparison_table, layer_table
from layersim.report.tradeoff import tradeoff_figure, tradeoff_table

__all__ = [
    "ExitReport",
    "LayerRecord",
    "Picture",
    "Quantity",
    "Run",
    "append_record",
    "comparison",
    "comparison_table",
    "curve",
    "figures_of",
    "layer_table",
    "load_run",
    "perplexity",
    "read_records",
    "save_picture",
    "tradeoff_figure",
    "tradeoff_table",
]
