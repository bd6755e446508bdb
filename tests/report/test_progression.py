"""The figures show the record's numbers; a record's progression has its shape."""

import json
import math
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from layersim.errors import UserError
from layersim.report.drawing.canvas import COLORS
from layersim.report.progression import class_paths_figure, progression_figure
from layersim.report.records import LayerRecord

COLLAPSE: dict[str, Any] = {
    "classes": [0, 4],
    "nc1": [20.0, 3.0, 0.5],
    "within_over_between": [3.0, 2.0, 1.0],
    "norm_spread": [0.5, 0.4, 0.3],
    "cosine_spread": [0.5, 0.4, 0.3],
    "simplex_gap": [0.6, 0.5, 0.4],
    "self_duality": [1.4, 1.0, 0.005],
}
PATHS: dict[str, Any] = {
    "classes": [0, 4],
    "points": [[[0.0, 0.0], [1.0, 1.0], [2.0, 1.0]], [[0.0, 0.5], [-1.0, 1.0], [-3.0, -1.0]]],
    "explained": 0.66,
}
PROGRESSION: dict[str, Any] = {
    "samples": 100,
    "centering": "samples",
    "cosine": [-0.1, 0.5, 1.0],
    "cosine_rises": 0.9,
    "cosine_rises_by_step": [0.95, 1.0],
    "path_over_chord": 1.25,
    "angle": [60.0],
    "distance_to_segment": [0.0, 0.3, 0.0],
    "skip_over_residual": [0.5, 20.0],
    "cosine_cka": {"pearson": 0.9, "spearman": 1.0},
    "target_probability": [0.2, 0.3, 0.4],
    "target_probability_rises": 0.5,
    "target_probability_rises_by_step": [0.6, 0.7],
    "neural_collapse": COLLAPSE,
    "class_paths": PATHS,
}


def record(**changes: Any) -> LayerRecord:
    return LayerRecord(epoch=0, step=0, stage="test", layers=3, samples=200, progression=PROGRESSION | changes)


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def points(axes: Axes) -> list[list[tuple[float, float]]]:
    return [list(map(tuple, line.get_xydata().tolist())) for line in axes.get_lines()]


def test_panels_show_the_numbers() -> None:
    shown = panels(progression_figure(PROGRESSION))
    assert list(shown) == [
        "Cosine to the last layer",
        "Probability of the true class",
        "Angle between steps",
        "Distance to the segment ÷ chord",
        "Norm of skip ÷ residual",
        "Neural collapse",
    ]
    cosine, probability, angle, distance, ratio, collapse = shown.values()
    assert points(cosine) == [[(1, -0.1), (2, 0.5), (3, 1.0)]]
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in cosine.patches] == [(1.5, 0.95), (2.5, 1)]
    assert (cosine.get_ylim(), probability.get_ylim()) == ((-0.2, 1), (0, 1))
    assert "90% always" in cosine.get_xlabel()
    assert "50% always" in probability.get_xlabel()
    assert (points(angle), angle.get_ylim()) == ([[(2, 60)]], (0, 180))
    assert "1.25" in angle.get_xlabel()
    assert (points(distance), distance.get_ylim()) == ([[(1, 0), (2, 0.3), (3, 0)]], (0, 1))
    assert points(ratio)[0] == [(1.5, 0.5), (2.5, 20)]
    assert ratio.get_ylim() == pytest.approx((0.1, 100))
    assert [[y for _, y in line] for line in points(collapse)] == [
        COLLAPSE[name] for name in ("nc1", "norm_spread", "simplex_gap", "self_duality")
    ]
    assert collapse.get_ylim() == pytest.approx((0.001, 100))
    assert [text.get_text() for text in collapse.get_legend().get_texts()] == [
        "NC1",
        "NC2, norms",
        "NC2, angles",
        "NC3",
    ]


def test_what_was_not_measured_has_no_panel() -> None:
    bare = {key: value for key, value in PROGRESSION.items() if key[0] not in "tn"}
    assert len(panels(progression_figure(bare))) == 4
    broken = PROGRESSION | {"cosine": [math.nan] * 3, "cosine_rises": math.nan, "skip_over_residual": [math.inf, 1.0]}
    shown = panels(progression_figure(broken))
    assert "NaN always" in shown["Cosine to the last layer"].get_xlabel()


def test_each_class_has_its_way_and_its_number_at_the_end() -> None:
    (axes,) = class_paths_figure(**PATHS).axes
    assert points(axes) == [list(map(tuple, way)) for way in PATHS["points"]]
    assert [line.get_color() for line in axes.get_lines()] == list(COLORS[:2])
    assert [(text.get_text(), text.xy) for text in axes.texts] == [("0", (2, 1)), ("4", (-3, -1))]  # type: ignore[attr-defined]
    assert to_hex(axes.texts[0].get_bbox_patch().get_facecolor()).upper() == COLORS[0]  # type: ignore[union-attr]
    assert "66% of the variance" in axes.get_xlabel()
    assert axes.get_aspect() == 1
    broken = [[[math.nan] * 2] * 3] * 2
    assert not class_paths_figure([0, 4], broken, math.nan).axes[0].texts


def test_a_line_holds_it_and_gives_it_back() -> None:
    assert json.loads(record().to_line())["progression"] == PROGRESSION
    assert LayerRecord.from_line(record().to_line()) == record()
    missing = LayerRecord.from_line(record(path_over_chord=math.nan, angle=[math.inf]).to_line()).progression
    assert math.isnan(missing["path_over_chord"])
    assert math.isnan(missing["angle"][0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cosine": [0.1, 1.0]}, r"progression\.cosine: expected 3 numbers, got 2"),
        ({"angle": [1.0, 2.0]}, r"progression\.angle: expected 1 numbers, got 2"),
        ({"samples": 1.5}, r"progression\.samples: expected one whole number"),
        ({"centering": None}, r"progression\.centering: expected a name, got None"),
        ({"cosine_cka": {"pearson": 1.0}}, r"progression\.cosine_cka: .*; spearman absent"),
        ({"target_probability": [0.5]}, r"progression\.target_probability: expected 3 numbers, got 1"),
        ({"neural_collapse": COLLAPSE | {"nc1": [1.0]}}, r"progression\.neural_collapse\.nc1: expected 3 numbers"),
        ({"neural_collapse": COLLAPSE | {"self_duality": 1.0}}, r"neural_collapse\.self_duality: expected 3 numbers"),
        ({"neural_collapse": [1.0]}, r"progression\.neural_collapse: expected a JSON object with a list of classes"),
        ({"class_paths": PATHS | {"classes": [1]}}, r"progression\.class_paths\.points: expected 1 × 3 × 2 numbers"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        record(**changes)


def test_a_key_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"progression: expected the keys samples, .*; .*path_over_chord"):
        LayerRecord(epoch=0, step=0, stage="test", layers=3, samples=1, progression={"samples": 1})
