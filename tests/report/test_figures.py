import math
import os
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from layersim.errors import UserError
from layersim.report.drawing.canvas import DPI, layer_ticks, save_figure, shorten
from layersim.report.drawing.curves import share_limits
from layersim.report.drawing.heatmap import draw_matrix, scale_of
from layersim.report.figures import comparison_figure, counts_figure, curves_figure, figures_of, heat_map
from layersim.report.quantity import LAYER, Quantity, curve
from layersim.report.records import LayerRecord
from tests.report.recorded import quantities, recorded


def mesh(figure: Figure, axes: int = 0) -> Any:
    (found,) = [artist for artist in figure.axes[axes].collections if isinstance(artist, QuadMesh)]
    return found


def heights(line: Any) -> list[float]:
    return list(line.get_ydata())


def tick_labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_xticklabels()]


def cosines(layers: int, reach: float = 3.0) -> list[list[float]]:
    layer = np.arange(layers)
    return np.exp(-np.abs(layer[:, None] - layer) / reach).tolist()  # type: ignore[no-any-return]


def run(layers: int, **values: Any) -> LayerRecord:
    return recorded(epoch=1, step=9, stage="validate", layers=layers, samples=10, **values)


def drawn(matrix: Any, measure: str = "cosine", title: str = "", **options: Any) -> Figure:
    shown = quantities(similarity={measure: matrix})[measure]
    return heat_map(shown, title or shown.name_of(measure), **options)


def accuracies(**runs: list[float]) -> Figure:
    return curves_figure({name: quantities(accuracy=values)["accuracy"] for name, values in runs.items()}, "Accuracy")


def test_heatmap_shows_the_matrix_with_layer_1_at_the_bottom_left() -> None:
    matrix = [[1.0, 0.25, -0.125], [0.5, 1.0, -0.001], [0.75, 0.375, 1.0]]
    figure = drawn(matrix, title="a $run$ of mine")
    axes = figure.axes[0]
    assert mesh(figure).get_array().reshape(3, 3).tolist() == matrix
    assert {(round(t.get_position()[0]), round(t.get_position()[1])): t.get_text() for t in axes.texts} == {
        (1, 1): "1.00", (2, 1): "0.25", (3, 1): "−0.12",
        (1, 2): "0.50", (2, 2): "1.00", (3, 2): "0.00",
        (1, 3): "0.75", (2, 3): "0.38", (3, 3): "1.00",
    }  # fmt: skip
    bottom_left, top_right = axes.transData.transform([(1, 1), (3, 3)])
    assert (bottom_left < top_right).all()
    assert tick_labels(figure) == ["1", "2", "3"]
    assert axes.get_title(loc="left") == "A $run$ of mine"
    assert figure.axes[1].get_ylabel() == "a $run$ of mine"


POSITIVE, SIGNED = [[1.0, 0.9], [0.9, 1.0]], [[1.0, -0.2], [-0.2, 1.0]]


@pytest.mark.parametrize(
    ("measure", "matrix", "limits", "colors"),
    [
        ("cosine", POSITIVE, (0, 1), "viridis"),
        ("cka", [[math.nan, math.nan], [math.nan, 1.0]], (0, 1), "viridis"),
        ("cka", [[1.0, -0.004], [-0.004, 1.0]], (0, 1), "viridis"),  # shown as 0.00
        ("cosine", SIGNED, (-1, 1), "RdBu_r"),
        ("angular", POSITIVE, (0, 1), "viridis_r"),  # alike is bright
        ("of_a_user", POSITIVE, (0.9, 1), "viridis"),  # which tells no range
        ("of_a_user", SIGNED, (-1, 1), "RdBu_r"),
    ],
)
def test_colours_have_the_range_of_the_quantity_and_no_blue_where_nothing_is_negative(
    measure: str, matrix: Any, limits: tuple[float, float], colors: str
) -> None:
    figure = drawn(matrix, measure)
    assert mesh(figure).get_clim() == limits
    assert figure.axes[1].get_ylim() == limits
    assert mesh(figure).get_cmap().name == colors


def test_colours_of_the_datas_range_tell_near_values_apart() -> None:
    near = [[1.0, 0.90, 0.99]] * 3
    fixed, fitted = (mesh(drawn(near, "cka", span=span)) for span in ("fixed", "data"))
    assert fitted.get_clim() == (0.9, 1.0)
    apart = [np.abs(np.diff(one.to_rgba([0.90, 0.99])[:, :3], axis=0)).max() for one in (fixed, fitted)]
    assert apart[1] > 3 * apart[0]


def test_nan_is_a_hatched_hole_without_a_value() -> None:
    figure = drawn([[math.nan, math.nan], [math.nan, 1.0]], "cka")
    assert np.ma.getmaskarray(mesh(figure).get_array()).ravel().tolist() == [True, True, True, False]
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["", "", "", "1.00"]
    assert figure.axes[0].patch.get_hatch()
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    x, y = figure.axes[0].transData.transform((1, 1))
    cell = pixels[pixels.shape[0] - int(y) - 40 : pixels.shape[0] - int(y) + 40, int(x) - 40 : int(x) + 40]
    assert np.ptp(cell.astype(int), axis=-1).max() == 0  # grey, which none of the measure's colours is
    assert len(np.unique(cell.reshape(-1, 3), axis=0)) >= 2  # hatched, not plain


@pytest.mark.parametrize("measure", ["cosine", "cka"])
def test_values_stand_out_from_their_cells(measure: str) -> None:
    values = np.linspace(-1, 1, 256).reshape(16, 16)
    figure = drawn(values, measure)
    figure.canvas.draw()
    backgrounds = mesh(figure).get_facecolor()[:, :3]

    def luminance(color: Any) -> float:  # WCAG 2.2, relative luminance
        linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    contrasts = []
    for text, background in zip(figure.axes[0].texts, backgrounds, strict=True):
        pair = sorted([luminance(np.array(to_rgb(text.get_color()))), luminance(background)])
        contrasts.append((pair[1] + 0.05) / (pair[0] + 0.05))
    assert min(contrasts) >= 4.5  # WCAG AA


def test_values_are_written_where_they_can_be_read() -> None:
    for layers in (12, 16, 17):
        assert len(drawn(cosines(layers)).axes[0].texts) == layers**2
    for layers in (24, 48):
        assert len(drawn(cosines(layers)).axes[0].texts) == 0


def test_heatmap_refuses_what_is_no_matrix() -> None:
    scale = scale_of("cosine", Quantity(values=0.0), [[1.0]])
    with pytest.raises(UserError, match=r"matrix of layers × layers, got the shape \(3,\)"):
        draw_matrix(drawn(POSITIVE).axes[0], [1.0, 2.0, 3.0], scale)


def test_a_value_beyond_the_colours_points_the_bar() -> None:
    heights = {}
    for value in (0.0, -0.004, 1.004, 1.04):
        heights[value] = len(drawn([[1.0, value], [value, 1.0]], "cka").axes[1].patches)
    assert heights == {0.0: 0, -0.004: 0, 1.004: 0, 1.04: 1}  # what rounds to the end is no value beyond it


@pytest.mark.parametrize(
    ("layers", "ticks"),
    [
        (1, [1]),
        (12, list(range(1, 13))),
        (16, list(range(1, 17))),
        (24, [1, 4, 8, 12, 16, 20, 24]),
        (25, [1, 4, 8, 12, 16, 20, 25]),
        (48, [1, 8, 16, 24, 32, 40, 48]),
    ],
)
def test_layer_ticks(layers: int, ticks: list[int]) -> None:
    assert layer_ticks(layers) == ticks
    assert tick_labels(accuracies(run=[0.5] * layers)) == [str(tick) for tick in ticks]


def test_accuracy_curves() -> None:
    figure = accuracies(standard=[0.1, 0.9], _aligned=[0.7, math.nan, 0.8])
    (axes,) = figure.axes
    first, second = (np.asarray(line.get_xydata()).T.tolist() for line in axes.lines)  # x, then y
    assert first == [[1, 2], [0.1, 0.9]]
    np.testing.assert_array_equal(second, [[1, 2, 3], [0.7, math.nan, 0.8]])
    assert axes.get_ylim() == (0, 1)
    assert tick_labels(figure) == ["1", "2", "3"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["standard", "_aligned"]
    assert axes.lines[0].get_color() != axes.lines[1].get_color()
    assert axes.lines[0].get_marker() != axes.lines[1].get_marker()


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([0.3, 0.28, math.nan], (0, 0.5)),  # a GPT's tokens
        ([0.5], (0, 0.5)),
        ([0.51, 0.97], (0, 1)),
        ([0.02, 0.011], (0, 0.02)),
        ([0.3, -0.01], (-0.2, 0.5)),
        ([0.0], (0, 1)),
        ([math.nan], (0, 1)),
        ([], (0, 1)),
        ([1.0000001], (0, 1)),  # a cosine, rounded
    ],
)
def test_an_axis_of_shares_ends_at_a_round_number_above_the_values(
    values: list[float], ends: tuple[float, float]
) -> None:
    assert share_limits(values) == pytest.approx(ends, abs=1e-12)


def test_small_accuracies_fill_their_axis() -> None:
    (axes,) = accuracies(gpt=[0.21, 0.31]).axes
    assert axes.get_ylim() == (0, 0.5)


@pytest.mark.parametrize(
    ("perplexities", "within", "least"),
    [([8.73, 7.91, 7.84], (7, 10), 3), ([120.0, 14.4, 8.1], (5, 200), 3), ([2e12, 8e5, 27.9, math.inf], (5, 1e13), 5)],
)
def test_perplexities_are_drawn_in_logarithms_with_ticks_that_can_be_read(
    perplexities: list[float], within: tuple[float, float], least: int
) -> None:
    figure = figures_of(quantities(perplexity=perplexities))["layer_perplexity"]()
    (axes,) = figure.axes
    assert (axes.get_yscale(), axes.get_ylabel()) == ("log", "perplexity")
    assert heights(axes.lines[0]) == perplexities
    figure.canvas.draw()
    low, high = axes.get_ylim()
    assert within[0] < low < high < within[1]
    shown = [tick.label1.get_text() for tick in axes.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert len([text for text in shown if text]) >= least
    assert len(shown) <= 9


def test_language_models_are_compared_by_their_perplexity() -> None:
    gpts = {
        "a": run(2, unit="tokens", perplexity=[9.0, 8.0], accuracy=[0.1, 0.3]),
        "b": run(2, unit="tokens", perplexity=[12.0, 8.0], accuracy=[0.1, 0.2]),
    }
    axes = comparison_figure(gpts).axes[0]
    assert (axes.get_title(loc="left"), axes.get_ylabel()) == ("Perplexity by layer", "perplexity")
    assert heights(axes.lines[1]) == [12.0, 8.0]
    axes = comparison_figure(gpts | {"vit": run(2, accuracy=[0.1, 0.2])}).axes[0]
    assert axes.get_title(loc="left") == "Accuracy by layer", "which alone both kinds have"


def test_saturation_of_tokens_is_counted_in_tokens() -> None:
    assert counts_figure(curve([1, 2]), "saturation", "tokens").axes[0].get_ylabel() == "share of 3 tokens"


def test_saturation_histogram_shows_shares_and_their_sum() -> None:
    (axes,) = figures_of(quantities(saturation=[10, 30, 0, 40]))["saturation"]().axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.125, 0.375, 0, 0.5], abs=1e-15)  # type: ignore[attr-defined]
    assert heights(axes.lines[0]) == pytest.approx([0.125, 0.5, 0.5, 1.0], abs=1e-15)
    assert axes.get_ylim() == (0, 1)
    assert axes.get_ylabel() == "share of 80 samples"
    with pytest.raises(UserError, match="one sample or more"):
        counts_figure(curve([0, 0]), "saturation", "samples")


def test_comparison_figure() -> None:
    records = {
        "standard": run(3, accuracy=[0.1, 0.2, 0.9], similarity={"cosine": cosines(3)}),
        "aligned": run(2, accuracy=[0.8, 0.9], similarity={"cosine": [[1.0, -0.3], [-0.3, 1.0]]}),
        "bare": run(2),
    }
    figure = comparison_figure(records)
    accuracy, to_last, *matrices, bar = figure.axes
    assert [heights(line) for line in accuracy.lines] == [[0.1, 0.2, 0.9], [0.8, 0.9], []]
    assert [heights(line) for line in to_last.lines] == [[row[-1] for row in cosines(3)], [-0.3, 1.0], []]
    assert to_last.get_ylim() == pytest.approx((-0.4, 1))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["standard", "aligned", "bare"]
    assert [axes.get_title(loc="left") for axes in matrices] == ["standard", "aligned", "bare"]
    assert mesh(figure, 2).get_array().reshape(3, 3).tolist() == cosines(3)
    assert mesh(figure, 3).get_clim() == (-1, 1)
    assert [text.get_text() for text in matrices[2].texts] == ["not recorded"]
    assert bar.get_ylabel() == "cosine similarity"


def test_panels_of_a_comparison_lie_apart_and_on_the_sheet() -> None:
    for count in (1, 2, 3, 4, 9):
        figure = comparison_figure(
            {
                f"a rather long name of run {i}": run(6, accuracy=[0.5] * 6, similarity={"cosine": cosines(6)})
                for i in range(count)
            }
        )
        figure.canvas.draw()
        boxes = [axes.get_tightbbox() for axes in figure.axes]
        boxes += [legend.get_window_extent() for legend in figure.legends]
        for number, box in enumerate(boxes):
            assert box is not None
            assert figure.bbox.contains(box.x0, box.y0)
            assert figure.bbox.contains(box.x1, box.y1)
            assert not any(box.overlaps(other) for other in boxes[:number] if other is not None)


def test_shorten_keeps_both_ends() -> None:
    assert shorten("0123456789", 10) == "0123456789"
    assert shorten("0123456789", 7) == "012…789"
    assert shorten("two\nlines", 20) == "two lines"


def test_saved_png_decodes_to_its_size_and_nothing_else_is_left(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    figure = drawn(cosines(2))
    path = tmp_path / "figures" / "cosine.png"
    for _ in range(2):  # also over the picture that is there
        save_figure(figure, path)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.size == tuple(round(inches * DPI) for inches in figure.get_size_inches())
    assert os.listdir(path.parent) == ["cosine.png"]
    assert dict(matplotlib.rcParams) == before


def test_a_failed_save_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cosine.png"
    path.write_bytes(b"old")
    figure = drawn(cosines(2))

    def fail(target: Path, **_: object) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["cosine.png"]


def test_what_is_drawn_follows_from_axes_and_unit() -> None:
    """A quantity that nobody has heard of is drawn as any other of its axes."""
    ways = [[[0.0, 0.0], [1.0, 2.0]], [[1.0, 1.0], [3.0, 3.0]], [[1.0, 0.0], [0.0, math.nan]]]
    strange = {
        "pull": curve([3.0, 5.0], unit="newtons", better="lower"),
        "sheep": curve([3, 5], unit="samples"),
        "push": Quantity(values=[[1.0, 0.5], [0.5, 1.0]], axes=(LAYER, LAYER)),
        "tide": Quantity(values=[[1.0, 0.5]] * 3, axes=("moon", LAYER), ticks={"moon": ["a", "b", "c"]}),
        "dusk": Quantity(values=[0.2, 0.9], axes=("hour",), range=(0, 1), ticks={"hour": [6, 21], "light": [9.0, 0.5]}),
        "walk": Quantity(values=ways, axes=("dog", LAYER, "place"), ticks={"dog": ["x", "y", "z"]}),
        "mean": Quantity(values=0.5),
        "blob": Quantity(values=[[[[0.5]]]], axes=("a", "b", "c", "d")),
    }
    figures = {name: draw() for name, draw in figures_of(strange).items()}
    assert list(figures) == ["layer_pull", "sheep", "push", "tide", "dusk", "walk"]
    pull = figures["layer_pull"].axes[0]
    assert (pull.get_ylabel(), heights(pull.lines[0]), pull.get_ylim()[0]) == ("newtons", [3.0, 5.0], 0)
    assert figures["sheep"].axes[0].get_ylabel() == "share of 8 samples"
    assert mesh(figures["tide"]).get_array().shape == (3, 2)
    assert [text.get_text() for text in figures["tide"].axes[0].get_yticklabels()] == ["a", "b", "c"]
    dusk = figures["dusk"].axes[0]
    assert (dusk.get_xlabel(), list(dusk.lines[0].get_xdata()), dusk.get_ylim()) == ("light", [9.0, 0.5], (0, 1))
    assert [text.get_text() for text in figures["walk"].axes[0].texts] == ["x", "y"], "no end, no name"


def test_bands_are_intervals() -> None:
    ends = {"confidence": 0.9, "low": [0.25, 1.0], "high": [0.75, 1.0]}
    figure = curves_figure({"cka": curve([0.5, 1.0], range=(-1, 1), interval=ends)}, "similarity")
    (band,) = figure.axes[0].collections
    corners = band.get_paths()[0].vertices
    assert {tuple(corner) for corner in corners.tolist()} == {(1, 0.25), (2, 1.0), (1, 0.75)}  # type: ignore[union-attr]
