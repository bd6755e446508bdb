"""Records, figures and tables of runs. Knows what was measured, not the models: torch is never imported here."""

from layersim.report.canvas import save_figure
from layersim.report.compare import Run, load_run
from layersim.report.figures import comparison_figure, layer_accuracy_curve, saturation_histogram, similarity_heatmap
from layersim.report.quality import LayerQuality, perplexity, quality_figure
from layersim.report.records import EffectiveDepth, LayerRecord, append_record, read_records
from layersim.report.table import comparison_table, layer_table

__all__ = [
    "EffectiveDepth",
    "LayerQuality",
    "LayerRecord",
    "Run",
    "append_record",
    "comparison_figure",
    "comparison_table",
    "layer_accuracy_curve",
    "layer_table",
    "load_run",
    "perplexity",
    "quality_figure",
    "read_records",
    "saturation_histogram",
    "save_figure",
    "similarity_heatmap",
]
