"""What `LayerRecord.progression` must look like. Letters: L layers, C classes."""

from collections.abc import Mapping
from typing import Any

from layersim.errors import UserError
from layersim.report.numbers import expect_shapes

COLLAPSE = ("nc1", "within_over_between", "norm_spread", "cosine_spread", "simplex_gap")
"""L numbers each."""
_COUNTS = ("samples", "classes")


def expect_progression(progression: Mapping[str, Any], layers: int) -> None:
    """Refuses what is no progression over so many layers. Keys that this version does not know are passed over.

    Of `cosine` (to the last layer) and, where there are targets, `target_probability`: L means over the samples, and
    the share of the samples for which it rises: `…_rises` at every step, `…_rises_by_step` at each of L − 1.
    `path_over_chord` 1 or more, `angle` L − 2 degrees between steps, `distance_to_segment` L and `skip_over_residual`
    L − 1 ratios; `cosine_cka`: `pearson` and `spearman` over pairs of layers. Where there are classes,
    `neural_collapse`: C `classes` and L numbers by each measure, `self_duality` only where the classifier is linear;
    `class_paths`: the `classes` shown, C × L × 2 `points` and the share of variance `explained`. All but the target's
    probability is measured on `samples` samples, the cosine with `centering`.

    Raises:
        UserError: a key is missing, or a value does not fit; the key is named.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "samples": (),
        "cosine": (layers,),
        "cosine_rises": (),
        "cosine_rises_by_step": (layers - 1,),
        "path_over_chord": (),
        "angle": (layers - 2,),
        "distance_to_segment": (layers,),
        "skip_over_residual": (layers - 1,),
    }
    if "target_probability" in progression:
        of_cosine = [(key, shape) for key, shape in shapes.items() if key.startswith("cosine")]
        shapes |= {key.replace("cosine", "target_probability"): shape for key, shape in of_cosine}
    expect_shapes("progression", progression, shapes, counts=_COUNTS)
    if not isinstance(progression.get("centering"), str):
        raise UserError(f"progression.centering: expected a name, got {progression.get('centering')!r}.")
    expect_shapes(
        "progression.cosine_cka", progression.get("cosine_cka"), {"pearson": (), "spearman": ()}, counts=_COUNTS
    )
    if "neural_collapse" in progression:
        collapse = progression["neural_collapse"]
        measures = (*COLLAPSE, "self_duality") if "self_duality" in collapse else COLLAPSE
        classes = _classes("progression.neural_collapse", collapse)
        expect_shapes(
            "progression.neural_collapse",
            collapse,
            {"classes": (classes,)} | dict.fromkeys(measures, (layers,)),
            counts=_COUNTS,
        )
    if "class_paths" in progression:
        paths = progression["class_paths"]
        classes = _classes("progression.class_paths", paths)
        shapes = {"classes": (classes,), "points": (classes, layers, 2), "explained": ()}
        expect_shapes("progression.class_paths", paths, shapes, counts=_COUNTS)


def _classes(name: str, value: object) -> int:
    """How many classes it lists."""
    if not isinstance(value, Mapping) or not isinstance(value.get("classes"), list):
        raise UserError(f"{name}: expected a JSON object with a list of classes, got {value!r}.")
    return len(value["classes"])
