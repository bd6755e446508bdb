"""How straight, and how steadily, features go to the last layer."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from callbacks.monitor import LayerMonitor
from layersim.errors import UserError, check_choice
from layersim.heads import Head
from layersim.metrics import KeptSamples, TargetProbability, class_means, progression, rise_record, self_duality
from layersim.metrics.progression import LEAST
from layersim.module import LayerwiseModule
from layersim.outputs import LayerOutput
from layersim.report.drawing.pictures import Picture
from layersim.report.figures import figures_of, panels
from layersim.report.quantity import LAYER, RATIO, Quantity, curve
from layersim.similarity.directions import Centering

_COLLAPSE = {
    "nc1": "NC1",
    "within_over_between": "within ÷ between classes",
    "norm_spread": "NC2, norms",
    "cosine_spread": "NC2, spread of cosines",
    "simplex_gap": "NC2, angles",
    "self_duality": "NC3",
}


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
        **named: the parts of a module that is not ours; see LayerMonitor.
    """

    def __init__(self, max_samples: int | None = 4096, centering: Centering = "samples", **named: Any) -> None:
        super().__init__(**named)
        check_choice("centering", centering, Centering)
        KeptSamples(max_samples=max_samples, least=LEAST)  # refuses too few before any model is built
        self.max_samples = max_samples
        self.centering: Centering = centering

    def make_metrics(self, module: LayerwiseModule) -> dict[str, Metric]:
        if module.num_layers < 2:
            raise UserError("ProgressionMonitor needs two layers or more, but the model has 1: leave the callback out.")
        self._head, self._has_classes = module.head, not module.backbone.reads_tokens
        return {
            "features": KeptSamples(max_samples=self.max_samples, least=LEAST),
            "probability": TargetProbability(module.num_layers),
        }

    def update(self, metrics: dict[str, Metric], output: LayerOutput) -> None:
        metrics["features"].update(output.features)
        metrics["probability"].update(output)

    def measure(self, metrics: dict[str, Metric]) -> dict[str, Quantity]:
        features, targets, _ = metrics["features"].compute()
        probability = metrics["probability"].compute()
        classes = targets if self._has_classes else None
        record = progression(features, classes, centering=self.centering)
        if probability is not None:
            record |= rise_record("target_probability", probability)
        if (collapse := record.get("neural_collapse")) and type(self._head).parts_at is not Head.parts_at:
            collapse |= _nc3(self._head, features, targets, collapse["classes"])
        return _quantities(record)

    def figures(self, quantities: Mapping[str, Quantity]) -> dict[str, Callable[[], Picture]]:
        """One picture of all curves, and one of the classes' ways."""
        lines = {name: quantity for name, quantity in quantities.items() if len(quantity.axes) == 1}
        others = {name: quantity for name, quantity in quantities.items() if name not in lines}
        return {"progression": partial(panels, lines), **figures_of(others, self.unit)}


def _quantities(record: dict[str, Any]) -> dict[str, Quantity]:
    how = {"samples": record["samples"], "centering": record["centering"]}
    found = _rises(record, "cosine", "cosine_path", "cosine to the last layer", (-1, 1), how)
    if "target_probability" in record:
        found |= _rises(record, "target_probability", "target_probability", "probability of the true class", (0, 1), {})
    found |= {
        "path_over_chord": Quantity(
            values=record["path_over_chord"], label="path ÷ chord", range=(1, None), options=how
        ),
        "angle": _along(
            "inner layer", 2, record["angle"], label="angle between steps", unit="degrees", range=(0, 180), options=how
        ),
        "distance_to_segment": curve(
            record["distance_to_segment"], label="distance to the segment ÷ chord", range=(0, None), options=how
        ),
        "skip_over_residual": _along(
            "step", 1.5, record["skip_over_residual"], label="norm of skip ÷ residual", unit=RATIO, options=how
        ),
    }
    for name, value in record["cosine_cka"].items():
        found[f"cosine_cka_{name}"] = Quantity(values=value, range=(-1, 1), options=how)
    for name, label in _COLLAPSE.items():
        if values := record.get("neural_collapse", {}).get(name):
            found[name] = curve(values, label=label, unit=RATIO, better="lower", options=how)
    if paths := record.get("class_paths"):
        found["class_paths"] = Quantity(
            values=paths["points"],
            axes=("class", LAYER, "principal component"),
            label="class means",
            ticks={"class": paths["classes"]},
        )
        label = "variance of class means in the plane"
        found["class_plane"] = Quantity(values=paths["explained"], label=label, unit="share", range=(0, 1))
    return found


def _rises(
    record: dict[str, Any], key: str, name: str, label: str, ends: tuple[float, float], how: dict[str, Any]
) -> dict[str, Quantity]:
    """The mean at each layer, and for which share of the samples it rises: at each step, and at every one of them."""
    share: dict[str, Any] = {"unit": "share", "range": (0, 1), "options": how}
    by_step = _along("step", 1.5, record[f"{key}_rises_by_step"], label=f"share whose {label} rises", **share)
    return {
        name: curve(record[key], label=label, range=ends, options=how),
        f"{key}_rises_by_step": by_step,
        f"{key}_rises": Quantity(values=record[f"{key}_rises"], **share),
    }


def _along(axis: str, first: float, values: list[float], **told: Any) -> Quantity:
    """A value a place along the axis, counted from the first; a step from a layer to the next stands between them."""
    return Quantity(values=values, axes=(axis,), ticks={axis: [first + n for n in range(len(values))]}, **told)


def _nc3(head: Head, features: Tensor, targets: Tensor, classes: list[int]) -> dict[str, list[float]]:
    """`self_duality` at every layer, or nothing where a classifier is more than one linear map."""
    device = next(head.parameters()).device  # features may be kept on the host
    targets, chosen = targets.to(device), torch.tensor(classes, device=device)
    means, weights = [], []
    for layer, values in enumerate(features):
        norm, classifier = head.parts_at(layer)
        if not isinstance(classifier, nn.Linear):
            return {}
        means.append(class_means(norm(values.to(classifier.weight)), targets, chosen))
        weights.append(classifier.weight[chosen])
    return {"self_duality": self_duality(means, weights).tolist()}
