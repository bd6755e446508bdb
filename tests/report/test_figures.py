import io
import json
import math
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import altair
import numpy as np
import pytest
import vl_convert
from PIL import Image

from layersim.errors import UserError
from layersim.report.drawing.colors import scale_of
from layersim.report.drawing.pictures import Picture, curves, layer_ticks, rows, save_picture, share_limits, shorten
from layersim.report.figures import comparison, figures_of, matrix
from layersim.report.quantity import LAYER, RATIO, Quantity, curve
from layersim.report.records import LayerRecord
from tests.report.recorded import quantities, recorded


def svg(picture: Picture) -> ElementTree.Element:
    """The picture as Vega draws it."""
    return ElementTree.fromstring(vl_convert.vegalite_to_svg(picture))


def said(picture: Picture) -> list[str]:
    """All text of the drawn picture."""
    return [text for node in svg(picture).iter("{http://www.w3.org/2000/svg}text") if (text := node.text)]


def points(picture: Picture, series: str = "") -> list[tuple[Any, Any]]:
    """What one of the curves goes through."""
    found = picture["data"]["values"]
    return [(row["x"], row["value"]) for row in found if series in ("", row["y"])]


def channel(picture: Picture, mark: str, name: str) -> dict[str, Any]:
    """What a mark's channel is told."""
    layers = (layer for layer in picture["layer"] if layer["mark"]["type"] == mark)
    found: dict[str, Any] = next(layers)["encoding"][name]
    return found


def domain(picture: Picture) -> list[float]:
    found: list[float] = channel(picture, "line", "y")["scale"]["domain"]
    return found


def grid(picture: Picture) -> list[list[float | None]]:
    """A heat map's values, the first row below."""
    lines: dict[str, list[float | None]] = {}
    for row in picture["data"]["values"]:
        lines.setdefault(row["y"], []).append(row["value"])
    return [*lines.values()]


def ends(picture: Picture) -> tuple[float, ...]:
    """Of a heat map's colours."""
    return tuple(float(one["expr"]) for one in channel(picture, "rect", "color")["scale"]["domain"])


def cosines(layers: int, reach: float = 3.0) -> list[list[float]]:
    layer = np.arange(layers)
    return np.exp(-np.abs(layer[:, None] - layer) / reach).tolist()  # type: ignore[no-any-return]


def run(layers: int, **values: Any) -> LayerRecord:
    return recorded(epoch=1, step=9, stage="validate", layers=layers, samples=10, **values)


def drawn(values: Any, measure: str = "cosine", title: str = "", **options: Any) -> Picture:
    shown = quantities(similarity={measure: values})[measure]
    return matrix(shown, title or shown.name_of(measure), **options)


def accuracies(**runs: list[float]) -> Picture:
    return curves({name: quantities(accuracy=values)["accuracy"] for name, values in runs.items()}, "Accuracy")


def test_heatmap_shows_the_matrix_with_layer_1_at_the_bottom_left() -> None:
    values = [[1.0, 0.25, -0.125], [0.5, 1.0, -0.001], [0.75, 0.375, 1.0]]
    picture = drawn(values, title="a $run$ of mine")
    assert grid(picture) == values
    assert [row["short"] for row in picture["data"]["values"]] == [
        "1.00", "0.25", "−0.12", "0.50", "1.00", "0.00", "0.75", "0.38", "1.00",
    ]  # fmt: skip
    assert picture["title"] == "A $run$ of mine"
    assert channel(picture, "rect", "color")["legend"]["title"] == "a $run$ of mine"
    assert {"layer", "1", "2", "3", "A $run$ of mine", "−0.12", "0.38"} <= {*said(picture)}
    place = {text.text: text.get("transform") for text in svg(picture).iter("{http://www.w3.org/2000/svg}text")}
    (right, low), (left, high) = (
        [float(each) for each in re.findall(r"[\d.]+", place[shown] or "")] for shown in ("−0.12", "0.75")
    )
    assert right > left, "(1, 3) lies right of (3, 1)"
    assert low > high, "and below it"


POSITIVE, SIGNED = [[1.0, 0.9], [0.9, 1.0]], [[1.0, -0.2], [-0.2, 1.0]]


@pytest.mark.parametrize(
    ("measure", "values", "limits", "colors"),
    [
        ("cosine", POSITIVE, (0, 1), ("viridis", False)),
        ("cka", [[math.nan, math.nan], [math.nan, 1.0]], (0, 1), ("viridis", False)),
        ("cka", [[1.0, -0.004], [-0.004, 1.0]], (0, 1), ("viridis", False)),  # shown as 0.00
        ("cosine", SIGNED, (-1, 1), ("redblue", True)),
        ("angular", POSITIVE, (0, 1), ("viridis", True)),  # alike is bright
        ("of_a_user", POSITIVE, (0.9, 1), ("viridis", False)),  # which tells no range
        ("of_a_user", SIGNED, (-1, 1), ("redblue", True)),
    ],
)
def test_colours_have_the_range_of_the_quantity_and_no_blue_where_nothing_is_negative(
    measure: str, values: Any, limits: tuple[float, float], colors: tuple[str, bool]
) -> None:
    picture = drawn(values, measure)
    assert ends(picture) == limits
    scale = channel(picture, "rect", "color")["scale"]
    assert (scale["scheme"], scale["reverse"]) == colors


def test_colours_of_the_datas_range_tell_near_values_apart() -> None:
    near = [[1.0, 0.90, 0.99]] * 3
    fixed, fitted = (drawn(near, "cka", span=span) for span in ("fixed", "data"))
    assert ends(fitted) == (0.9, 1.0)
    apart = [np.abs(np.diff(colors_of(one)[:3][1:], axis=0)).max() for one in (fixed, fitted)]
    assert apart[1] > 3 * apart[0]


def colors_of(picture: Picture) -> np.ndarray:
    """(cells, 3) of 0 … 1, in the order of the rows."""
    cells = [path for path in svg(picture).iter() if path.get("aria-roledescription") == "rect mark"]
    told = [re.findall(r"\d+", cell.get("fill") or "") for cell in cells]
    return np.array([[int(each) / 255 for each in one] for one in told])


def test_nan_is_a_grey_hole_without_a_value() -> None:
    picture = drawn([[math.nan, math.nan], [math.nan, 1.0]], "cka")
    assert [row["short"] for row in picture["data"]["values"]] == ["", "", "", "1.00"]
    holes = colors_of(picture | {"config": {"scale": {"invalid": {"color": {"value": "rgb(204, 204, 204)"}}}}})[:3]
    assert np.ptp(holes, axis=1).max() == 0, "which none of the measure's colours is"


@pytest.mark.parametrize("measure", ["cosine", "cka", "angular"])
def test_values_stand_out_from_their_cells(measure: str) -> None:
    values = np.linspace(-1 if measure == "cosine" else 0, 1, 256).reshape(16, 16)
    picture = drawn(values.tolist(), measure)
    shown = [node for node in svg(picture).iter() if node.get("aria-roledescription") == "text mark"]
    inks = [1.0 if node.get("fill") == "white" else 0.0 for node in shown]

    def luminance(color: Any) -> float:  # WCAG 2.2, relative luminance
        linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    contrasts = []
    for ink, background in zip(inks, colors_of(picture), strict=True):
        pair = sorted([ink, luminance(background)])
        contrasts.append((pair[1] + 0.05) / (pair[0] + 0.05))
    assert {*inks} == {0.0, 1.0}
    assert min(contrasts) >= 4.5  # WCAG AA


def test_values_are_written_where_they_can_be_read() -> None:
    for layers, written in ((12, True), (16, True), (19, True), (24, False), (48, False)):
        shown = said(drawn(cosines(layers)))
        assert ("0.72" in shown) == written, layers


def test_heatmap_refuses_what_is_no_matrix() -> None:
    with pytest.raises(UserError, match=r"expected numbers over layer \(3\) × layer \(3\), got 3 of type"):
        Quantity(values=[1.0, 2.0, 3.0], axes=(LAYER, LAYER)).check("cka", 3)


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
    picture = accuracies(run=[0.5] * layers)
    assert channel(picture, "line", "x")["axis"]["values"] == ticks
    assert [text for text in said(picture) if text.isdigit()] == [str(tick) for tick in ticks]


def test_accuracy_curves() -> None:
    picture = accuracies(standard=[0.1, 0.9], _aligned=[0.7, math.nan, 0.8])
    assert points(picture, "standard") == [(1, 0.1), (2, 0.9)]
    assert points(picture, "_aligned") == [(1, 0.7), (2, None), (3, 0.8)]
    assert domain(picture) == [0, 1]
    for told in ("color", "shape", "strokeDash"):
        assert channel(picture, "line", told)["scale"]["domain"] == ["standard", "_aligned"]
    assert {"standard", "_aligned", "Accuracy", "layer"} <= {*said(picture)}


@pytest.mark.parametrize(
    ("values", "limits"),
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
    values: list[float], limits: tuple[float, float]
) -> None:
    assert share_limits(values) == pytest.approx(limits, abs=1e-12)


def test_small_accuracies_fill_their_axis() -> None:
    assert domain(accuracies(gpt=[0.21, 0.31])) == [0, 0.5]


@pytest.mark.parametrize(
    ("perplexities", "least"),
    [([8.73, 7.91, 7.84], 3), ([120.0, 14.4, 8.1], 2), ([2e12, 8e5, 27.9, math.inf], 5), ([8.0, 8.0, 8.0], 1)],
)
def test_perplexities_are_drawn_in_logarithms_with_ticks_that_can_be_read(
    perplexities: list[float], least: int
) -> None:
    picture = figures_of(quantities(perplexity=perplexities))["layer_perplexity"]()
    assert channel(picture, "line", "y")["scale"]["type"] == "log"
    finite = [value if math.isfinite(value) else None for value in perplexities]
    assert [value for _, value in points(picture)] == finite
    layers = {str(layer) for layer in range(1, len(perplexities) + 1)}
    ticks = [text for text in said(picture) if text.replace(".", "").replace("e+", "").isdigit()]
    assert least <= len(ticks) - len(layers) <= 13
    assert all(len(tick) <= 6 for tick in ticks), ticks


@pytest.mark.parametrize("ends", [(33.2, 33.4), (12.3, 14.2), (0.9, 2.6), (0.031, 0.036), (3.0, 80.0), (27.9, 2e12)])
def test_ticks_of_a_logarithmic_axis_are_told_apart_and_stand_where_they_say(ends: tuple[float, float]) -> None:
    picture = curves({"x": curve(np.geomspace(*ends, 5), unit=RATIO)}, "x")
    told = [text for text in said(picture) if text not in ("x", "layer", *"12345")]
    told += [layer for layer in "12345" if said(picture).count(layer) > 1]
    assert len(told) == len({*told}) >= 3
    assert all(ends[0] * 0.999 <= float(text) <= ends[1] * 1.001 for text in told), told


@pytest.mark.parametrize("values", [[37.25], [37.25] * 3])
def test_a_logarithmic_axis_of_one_value_says_it(values: list[float]) -> None:
    assert "37.25" in said(curves({"x": curve(values, unit=RATIO)}, "x"))


def test_language_models_are_compared_by_their_perplexity() -> None:
    gpts = {
        "a": run(2, unit="tokens", perplexity=[9.0, 8.0], accuracy=[0.1, 0.3]),
        "b": run(2, unit="tokens", perplexity=[12.0, 8.0], accuracy=[0.1, 0.2]),
    }
    first = comparison(gpts)["concat"][0]
    assert first["title"] == "Perplexity by layer"
    assert points(first, "b") == [(1, 12.0), (2, 8.0)]
    mixed = comparison(gpts | {"vit": run(2, accuracy=[0.1, 0.2])})["concat"][0]
    assert mixed["title"] == "Accuracy by layer", "which alone both kinds have"


def test_saturation_shows_shares_and_their_sum() -> None:
    picture = figures_of(quantities(saturation=[10, 30, 0, 40]))["saturation"]()
    assert points(picture) == [(1, 0.125), (2, 0.375), (3, 0.0), (4, 0.5)]
    assert picture["title"] == "Saturated here: share of 80 samples at each layer, and up to it"
    assert said(picture).count("100%") == 1
    tokens = figures_of({"saturation": curve([1, 2], unit="tokens")}, "tokens")["saturation"]()
    assert tokens["title"].startswith("Saturation: share of 3 tokens")


def test_comparison() -> None:
    records = {
        "standard": run(3, accuracy=[0.1, 0.2, 0.9], similarity={"cosine": cosines(3)}),
        "aligned": run(2, accuracy=[0.8, 0.9], similarity={"cosine": [[1.0, -0.3], [-0.3, 1.0]]}),
        "bare": run(2),
    }
    picture = comparison(records)
    (accuracy, to_last), maps = picture["vconcat"][0]["concat"], picture["vconcat"][1]["concat"]
    assert [points(accuracy, name) for name in records] == [
        [(1, 0.1), (2, 0.2), (3, 0.9)],
        [(1, 0.8), (2, 0.9)],
        [],
    ]
    assert [value for _, value in points(to_last, "aligned")] == [-0.3, 1.0]
    assert domain(to_last) == pytest.approx([-0.4, 1])
    assert channel(accuracy, "line", "color")["scale"]["domain"] == ["standard", "aligned", "bare"]
    assert [one["title"] for one in maps] == ["standard", "aligned", "bare"]
    assert grid(maps[0]) == cosines(3)
    assert [ends(one) for one in maps[:2]] == [(-1, 1)] * 2
    text = said(picture)
    assert text.count("cosine similarity") == 1, "the colours are told once"
    assert text.count("not recorded") == 1


def test_of_runs_without_matrices_the_curves_are_compared() -> None:
    text = said(comparison({"a": run(2, accuracy=[0.5, 0.75]), "b": run(2)}))
    assert "Accuracy by layer" in text
    assert text.count("not recorded") == 1


def test_shorten_keeps_both_ends() -> None:
    assert shorten("0123456789", 10) == "0123456789"
    assert shorten("0123456789", 7) == "012…789"
    assert shorten("two\nlines", 20) == "two lines"


def test_a_saved_png_is_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "cosine.png"
    for layers in (2, 12):  # also over the picture that is there
        save_picture(drawn(cosines(layers)), path)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert 700 < image.width < 900
        pixels = np.asarray(image.convert("RGB"))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, "colours"
    assert os.listdir(path.parent) == ["cosine.png"]


def test_a_failed_save_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cosine.png"
    path.write_bytes(b"old")

    def fail(target: Path, content: bytes) -> int:
        with io.FileIO(target, "w") as file:
            file.write(content[:4])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        save_picture(drawn(cosines(2)), path)
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
        "gain": Quantity(
            values=[[0.1, math.nan], [0.2, 0.3]],
            axes=(LAYER, "hour"),
            range=(-1, 1),
            interval={"low": [[0.0, math.nan], [0.1, 0.1]], "high": [[0.2, math.nan], [0.3, 0.5]]},
        ),
        "dusk": Quantity(values=[0.2, 0.9], axes=("hour",), range=(0, 1), ticks={"hour": [6, 21], "light": [9.0, 0.5]}),
        "walk": Quantity(values=ways, axes=("dog", LAYER, "place"), ticks={"dog": ["x", "y", "z"]}),
        "mean": Quantity(values=0.5),
        "blob": Quantity(values=[[[[0.5]]]], axes=("a", "b", "c", "d")),
    }
    figures = {name: draw() for name, draw in figures_of(strange).items()}
    assert list(figures) == ["layer_pull", "sheep", "push", "tide", "gain", "dusk", "walk"]
    for picture in figures.values():
        altair.LayerChart.from_dict(picture)
    pull = figures["layer_pull"]
    assert (channel(pull, "line", "y")["title"], points(pull), domain(pull)[0]) == ("newtons", [(1, 3.0), (2, 5.0)], 0)
    assert "share of 8 samples" in figures["sheep"]["title"]
    assert [row["y"] for row in figures["tide"]["data"]["values"]] == ["a", "a", "b", "b", "c", "c"]
    gain = figures["gain"]  # of both signs, neither of them better: 0 is in the middle whatever the values are
    assert (ends(gain), channel(gain, "rect", "color")["scale"]["scheme"]) == ((-1, 1), "redblue")
    assert [row["low"] for row in gain["data"]["values"]] == [0.0, None, 0.1, 0.1]
    dusk = figures["dusk"]
    assert (channel(dusk, "line", "x")["title"], points(dusk), domain(dusk)) == (
        "light",
        [(9, 0.2), (0.5, 0.9)],
        [0, 1],
    )
    assert points(figures["walk"], "y") == [(1.0, 1.0), (3.0, 3.0)]
    assert channel(figures["walk"], "line", "color")["scale"]["domain"] == ["x", "y", "z"]


def test_bands_are_intervals_within_the_range() -> None:
    interval = {"confidence": 0.9, "low": [0.25, 1.0], "high": [0.75, 1.5]}
    found = rows(curve([0.5, 1.0], range=(-1, 1), interval=interval), "cka")
    assert [(row["low"], row["high"]) for row in found] == [(0.25, 0.75), (1.0, 1.0)]
    nodes = svg(curves({"cka": curve([0.5, 1.0], range=(-1, 1), interval=interval)}, "")).iter()
    assert any("area mark" in (node.get("aria-roledescription") or "") for node in nodes)


def test_a_scale_of_one_value_has_room() -> None:
    scale = scale_of("x", Quantity(values=0.0), [[2.0]])
    assert (scale.low, scale.high) == (1.5, 2.5)


@pytest.mark.parametrize("ends", [(None, 0), (0, None), (None, None)])
def test_an_interval_is_drawn_within_the_quantitys_range_an_end_at_zero_too(ends: tuple[float | None, ...]) -> None:
    interval = {"low": [-0.5], "high": [0.5]}
    (row,) = rows(Quantity(values=[0.0], axes=(LAYER,), range=ends, interval=interval))

    assert (row["low"], row["high"]) == (-0.5 if ends[0] is None else 0, 0.5 if ends[1] is None else 0)


def test_an_interval_of_whole_numbers_is_drawn() -> None:
    """Of NumPy's whole numbers JSON, by which Vega is told, knows nothing."""
    (row,) = json.loads(json.dumps(rows(curve([1], range=(0, 4), interval={"low": [0], "high": [5]}))))
    assert (row["low"], row["value"], row["high"]) == (0, 1, 4)


def test_counts_of_nothing_are_drawn_as_no_share() -> None:
    """A measure of somebody's own may count what no layer had; that ends no training."""
    counts = {"mistakes": curve([0, 0], unit="samples", range=(0, None)), "some": curve([1, 3], unit="samples")}
    found = {name: draw() for name, draw in figures_of(counts).items()}
    shares = {name: [row["value"] for row in picture["data"]["values"]] for name, picture in found.items()}
    assert shares == {"mistakes": [None, None], "some": [0.25, 0.75]}
    assert found["mistakes"]["title"].startswith("Mistakes: share of 0 samples")
    assert not [node for node in svg(found["mistakes"]).iter() if node.get("aria-roledescription") == "bar"]
    assert len([node for node in svg(found["some"]).iter() if node.get("aria-roledescription") == "bar"]) == 2
