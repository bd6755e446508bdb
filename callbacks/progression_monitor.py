"""How straight, and how steadily, features go to the last layer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from callbacks.monitor import LayerMonitor, Measured
from layersim.errors import UserError
from layersim.heads import Head, SeparateHeads, SharedHead
from layersim.metrics import KeptSamples, TargetProbability, class_means, progression, rise_record, self_duality
from layersim.metrics.progression import LEAST
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.report.progression import class_paths_figure, progression_figure
from layersim.runs.rehearsal import classifier_width, made_up
from layersim.similarity.directions import Centering, require_centering


class ProgressionMonitor(LayerMonitor[Metric]):
    """Measures whether the paper's theorems and their premises hold (arXiv 2406.14479): for which share of the samples
    the cosine to the last layer and the true class's probability rise with the layer, how straight the path of features
    is, how far cosine and CKA agree, and neural collapse; draws them, and the class means' way through the layers.

    The probability is measured on all samples, all else on `max_samples` of them, the same on any number of processes.
    Tokens are no classes with means: a language model has neither neural collapse nor class means here. NC3 takes the
    class means of what the classifier reads, behind the final norm, and is there where classifiers are linear; NC1 and
    NC2 take features as blocks put them out.

    Args:
        max_samples: kept at most; all where None. NC1 is noisy, and too low, where a class has but a few of them.
        centering: of the cosines, see `layersim.similarity.cosine`; "samples" is the paper's.
    """

    def __init__(self, max_samples: int | None = 4096, centering: Centering = "samples") -> None:
        super().__init__()
        require_centering(centering)
        KeptSamples(max_samples=max_samples, least=LEAST)  # refuses too few before any model is built
        self.max_samples = max_samples
        self.centering: Centering = centering
        self._head: Head
        self._has_classes: bool

    def make_metrics(self, module: LayerwiseModule) -> dict[str, Metric]:
        if module.num_layers < 2:
            raise UserError("ProgressionMonitor needs two layers or more, but the model has 1: leave the callback out.")
        self._head, self._has_classes = module.head, not module.backbone.reads_tokens
        return {
            "features": KeptSamples(max_samples=self.max_samples, least=LEAST),
            "probability": TargetProbability(module.num_layers),
        }

    def rehearse(self, module: LayerwiseModule, samples: int) -> set[str]:
        width = classifier_width(module)  # NC3 reads features by the norm and the classifier
        return self.rehearsed(self.fresh(module), made_up(module.num_layers, width, samples))

    def update(self, metrics: dict[str, Metric], output: LayerOutput) -> None:
        metrics["features"].update(output.features)
        metrics["probability"].update(output)

    def measure(self, metrics: dict[str, Metric]) -> Measured:
        features, targets, _ = metrics["features"].compute()
        probability = metrics["probability"].compute()
        classes = targets if self._has_classes else None
        record = progression(features, classes, centering=self.centering)
        if probability is not None:
            record |= rise_record("target_probability", probability)
        if (collapse := record.get("neural_collapse")) and isinstance(self._head, SharedHead | SeparateHeads):
            collapse |= _nc3(self._head, features, targets, collapse["classes"])
        figures = {"progression": lambda: progression_figure(record)}
        if paths := record.get("class_paths"):
            figures["class_paths"] = lambda: class_paths_figure(**paths)
        return Measured(_scalars(record), {"progression": record}, figures)


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    names = ("cosine_rises", "target_probability_rises", "path_over_chord")
    scalars: dict[str, float] = {name: record[name] for name in names if name in record}
    scalars |= {f"cosine_cka_{name}": value for name, value in record["cosine_cka"].items()}
    if collapse := record.get("neural_collapse"):
        scalars["nc1"] = collapse["nc1"][-1]
    return scalars


def _nc3(
    head: SharedHead | SeparateHeads, features: Tensor, targets: Tensor, classes: list[int]
) -> dict[str, list[float]]:
    """`self_duality` at every layer, or nothing where a classifier is more than one linear map."""
    classifiers = _classifiers(head)
    if not all(isinstance(classifier, nn.Linear) for classifier in classifiers):
        return {}
    chosen = torch.tensor(classes, device=targets.device)
    means, weights = [], []
    for layer, (values, classifier) in enumerate(zip(features, classifiers, strict=True)):
        weight: Tensor = classifier.weight  # type: ignore[assignment]
        raw = isinstance(head, SharedHead) and head.norm == "none" and layer < head.num_layers - 1
        read = values.to(weight.dtype) if raw else head.final_norm(values.to(weight.dtype))
        means.append(class_means(read, targets, chosen))
        weights.append(weight[chosen])
    return {"self_duality": self_duality(means, weights).tolist()}


def _classifiers(head: SharedHead | SeparateHeads) -> Sequence[nn.Module]:
    """The classifier that reads each layer."""
    return list(head.classifiers) if isinstance(head, SeparateHeads) else [head.classifier] * head.num_layers
