"""Similarity of every pair of layers."""

from copy import deepcopy
from functools import partial

from matplotlib.figure import Figure

from callbacks.monitor import LayerMonitor, Measured, per_layer
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.report.figures import similarity_heatmap
from layersim.similarity import CosineSimilarity, LinearCKA
from layersim.similarity.samples import SampleMetric


class SimilarityHeatmaps(LayerMonitor[SampleMetric]):
    """Draws a heat map of each measure every epoch, and logs every layer's similarity to the last.

    Args:
        measures: metrics of `layersim.similarity`, each by the name it gets in logs and records. Where None: `cosine`,
            centred over the samples (4096 of them at most), and `cka`: minibatch linear CKA over all; where tokens are
            the samples, whose neighbours are alike, debiased linear CKA over 4096 of them at most.
    """

    def __init__(self, measures: dict[str, SampleMetric] | None = None) -> None:
        super().__init__()
        self.measures = measures

    def make_metrics(self, module: LayerwiseModule) -> dict[str, SampleMetric]:
        measures = self.measures or default_measures(tokens=module.backbone.reads_tokens)
        return {name: deepcopy(measure) for name, measure in measures.items()}

    def update(self, metrics: dict[str, SampleMetric], output: LayerOutput) -> None:
        for metric in metrics.values():
            metric.update(output.features.values, output.features.position)

    def measure(self, metrics: dict[str, SampleMetric]) -> Measured:
        matrices = {name: metric.compute().tolist() for name, metric in metrics.items()}
        return Measured(
            scalars={
                key: value
                for name, matrix in matrices.items()
                for key, value in per_layer(f"{name}_to_last", [row[-1] for row in matrix]).items()
            },
            record={
                "similarity": matrices,
                "options": {name: metric.options for name, metric in metrics.items()},
            },
            figures={name: partial(_draw, name, matrix) for name, matrix in matrices.items()},
        )


def default_measures(*, tokens: bool) -> dict[str, SampleMetric]:
    """What is measured unless a recipe says otherwise, where samples are tokens or not."""
    cka = LinearCKA(estimator="debiased", max_samples=4096) if tokens else LinearCKA()
    return {"cosine": CosineSimilarity(max_samples=4096), "cka": cka}


def _draw(name: str, matrix: list[list[float]]) -> Figure:
    return similarity_heatmap(matrix, title=name, measure=name)
