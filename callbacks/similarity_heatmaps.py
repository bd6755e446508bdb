"""Similarity of every pair of layers."""

from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torchmetrics import Metric

from callbacks.evaluation import data_module
from callbacks.monitor import LayerMonitor
from layersim.errors import check_choice, check_share
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.report.drawing.colors import Range
from layersim.report.drawing.pictures import Picture, curves
from layersim.report.figures import figures_of
from layersim.report.quantity import LAYER, Quantity, labels
from layersim.runs.rehearsal import classifier_width, made_up
from layersim.similarity import CosineSimilarity, LinearCKA, StreamedCKA
from layersim.similarity.features import TooFewSamples
from layersim.similarity.measure import Measure, as_measures
from layersim.similarity.null import require_permutations

AS_READ = "as read"
"""The order of data that are not layersim's: whatever it may be."""


class SimilarityHeatmaps(LayerMonitor[Measure]):
    """Draws a heat map of each measure every epoch, and logs every layer's similarity to the last.

    Samples are told apart by their position among the data that are read, a batch's integer (N,) "position", as
    layersim's own data give it, in an order that a seed draws; the record's options tell the order. A batch without
    one is numbered as it comes, each process for itself: on several
    processes minibatch CKA then groups each process's own samples, the cap draws others than on one process, and what
    Lightning's sampler repeats to fill the last shard counts twice; a warning says so. For numbers that no split
    changes give positions, and read with `layersim.data.samplers.EvaluationSampler`, which repeats nothing.

    Args:
        measures: metrics of `layersim.similarity`, or torchmetrics' own of two tensors (`PairMeasure`), each by the
            name it gets in logs and records. Where None: `cosine`, centred over the samples (4096 of them at most), and
            `cka`: of images in an order that layersim's data drew, minibatch linear CKA over all; of tokens, whose
            neighbours are alike, of texts, and of data in an order that nobody knows, debiased linear CKA over 4096 of
            them at most. One of these two that needs more samples than there are is left out, which a line tells; one
            that was asked for is refused.
        confidence: also measure, record and draw the interval of every value at this confidence, such as 0.95, by the
            jackknife (`layersim.similarity.jackknife`): free for minibatch CKA, some values' cost for measures that
            keep their samples. Tokens of one text are not independent, and their intervals too narrow.
        null: also measure what chance makes of every value, from so many permutations of the samples, such as 200
            (`layersim.similarity.Measure.null`): recorded as p, p over the whole map, and the value calibrated to it;
            cells that are not beyond chance are hatched. It costs about so many times the value. Tokens of one text are
            not independent, and their p too small. In YAML the option's name stands in quotes: `"null": 200`.
        colors: whose range the heat maps' colours have: the measure's, `fixed`, so that all pictures can be laid side
            by side; or the `data`'s, which tells 0.90 and 0.99 apart.
        **named: the parts of a module that is not ours; see LayerMonitor.
    """

    reads_head = False

    def __init__(
        self,
        measures: dict[str, Measure | Metric] | None = None,  # a recipe's short name is looked up in this order
        *,
        confidence: float | None = None,
        null: int | None = None,
        colors: Range = "fixed",
        **named: Any,
    ) -> None:
        super().__init__(**named)
        if confidence is not None:
            check_share("a confidence", confidence)
        self.measures = None if measures is None else self._prepared(as_measures(measures), null)
        self.confidence = confidence
        self.null = null
        check_choice("colors", colors, Range)
        self.colors: Range = colors
        self._order = AS_READ
        self._left_out: set[str] = set()

    def make_metrics(self, module: LayerwiseModule) -> dict[str, Measure]:
        grouped = self.named is None and module.backbone.input_size is not None and self._order != AS_READ
        measures = self.measures
        if measures is None:
            measures = self._prepared(default_measures(grouped=grouped), self.null)
        return {name: deepcopy(measure) for name, measure in measures.items()}

    @staticmethod
    def _prepared(measures: dict[str, Measure], null: int | None) -> dict[str, Measure]:
        if null is not None:
            for measure in measures.values():
                measure.expect_null(null)
        return measures

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._order = getattr(data_module(trainer), "order", AS_READ)
        super().start(trainer, pl_module)

    def update(self, metrics: dict[str, Measure], output: LayerOutput) -> None:
        for metric in metrics.values():
            metric.update(output.features.values, output.features.position)

    def rehearse(self, module: LayerwiseModule, samples: int) -> set[str]:
        """As any monitor's, of two layers of the model's width: some measures need more samples where D is larger."""
        if self.named is not None:
            return super().rehearse(module, samples)
        for measure in (self.measures or {}).values():
            if isinstance(measure, StreamedCKA):
                measure.require_room(module.num_layers, classifier_width(module))
        names = self.rehearsed(self.fresh(module), made_up(2, classifier_width(module), samples))
        layers = range(1, module.num_layers + 1)
        return {name.replace("layer_01", f"layer_{n:02d}") for name in names if "layer_01" in name for n in layers}

    def rehearsed(self, metrics: dict[str, Measure], output: LayerOutput) -> set[str]:
        if self.null is not None:
            require_permutations(self.null, output.features.values.shape[1])
        twin = copy(self)
        twin.null = None  # permutations take long, and tell no other names
        return super(SimilarityHeatmaps, twin).rehearsed(metrics, output)

    def measure(self, metrics: dict[str, Measure]) -> dict[str, Quantity]:
        read = {"order": self._order}
        measured = {}
        for name, metric in metrics.items():
            try:
                measured[name] = similarity_quantity(metric, read, self.confidence, self.null)
            except TooFewSamples as error:
                if self.measures is not None or self.confidence is not None or self.null is not None:
                    raise
                if name not in self._left_out:
                    rank_zero_info(f"SimilarityHeatmaps leaves {name} out: {error}.")
                self._left_out.add(name)
        return measured

    def figures(self, quantities: Mapping[str, Quantity]) -> dict[str, Callable[[], Picture]]:
        drawn = figures_of(quantities, self.unit, span=self.colors)
        if self.confidence is not None:
            title = f"Similarity to the last layer with intervals at {self.confidence:.4g}"
            to_last = {label: quantities[name].to_last() for name, label in labels(quantities).items()}
            drawn["to_last"] = partial(curves, to_last, title)
        return drawn


def default_measures(*, grouped: bool) -> dict[str, Measure]:
    """What is measured unless a recipe says otherwise, where samples that follow each other are random groups, or may
    be neighbours that are alike."""
    cka = LinearCKA() if grouped else LinearCKA(estimator="debiased", max_samples=4096)
    return {"cosine": CosineSimilarity(max_samples=4096), "cka": cka}


def similarity_quantity(
    metric: Measure, read: Mapping[str, Any], confidence: float | None, permutations: int | None = None
) -> Quantity:
    """A metric's (L, L) values; their intervals at this confidence, and what so many permutations make of them, where
    these are not None."""
    told: dict[str, Any] = {"axes": (LAYER, LAYER), "label": metric.label, "range": tuple(metric.value_range)}
    told |= {"better": "lower" if metric.lower_is_alike else "higher", "options": metric.options | dict(read)}
    if permutations is not None:
        told["null"] = metric.null(permutations).told()
    if confidence is None:
        return Quantity(values=metric.compute().tolist(), **told)
    found = metric.interval(confidence)
    ends = {"confidence": found.confidence, "low": found.low.tolist(), "high": found.high.tolist()}
    return Quantity(values=found.value.tolist(), interval=ends, **told)
