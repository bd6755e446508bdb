import math
from typing import Any

import pytest

from layersim.errors import UserError
from layersim.report.quality import LayerQuality, quality_figure


def quality(layers: list[int], **values: Any) -> LayerQuality:
    curve = [0.5 for _ in layers]
    measured = {"perplexity": [2 + each for each in curve], "diversity": curve, "repetition": curve} | values
    return LayerQuality(layers=layers, samples=4, **measured)


def test_each_panel_shows_its_numbers_at_their_layers() -> None:
    aligned = quality([1, 2, 3], perplexity=[9.0, 5.0, 4.0], diversity=[0.2, math.nan, 0.9], repetition=[0.4, 0.3, 0.1])
    figure = quality_figure({"aligned": aligned, "_standard": quality([2, 6])})
    titles = ["Perplexity of the texts", "Diversity", "Repetition of 4-grams"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == titles
    assert [list(axes.lines[0].get_xdata()) for axes in figure.axes] == [[1, 2, 3]] * 3
    assert list(figure.axes[0].lines[0].get_ydata()) == [9, 5, 4]
    assert list(figure.axes[2].lines[0].get_ydata()) == [0.4, 0.3, 0.1]
    low, gap, high = figure.axes[1].lines[0].get_ydata()
    assert (low, high, math.isnan(gap)) == (0.2, 0.9, True)
    assert [list(axes.lines[1].get_xdata()) for axes in figure.axes] == [[2, 6]] * 3
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]
    assert [axes.get_ylim() for axes in figure.axes[1:]] == [(0, 1)] * 2
    assert [axes.get_xlim() for axes in figure.axes] == [(0.5, 6.5)] * 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["aligned", "_standard"]


def test_panels_lie_apart_and_on_the_sheet() -> None:
    for count in (1, 9):
        figure = quality_figure({f"a rather long name of run {i}": quality([1, 2, 3]) for i in range(count)})
        figure.canvas.draw()
        boxes: list[Any] = [axes.get_tightbbox() for axes in figure.axes]
        boxes += [legend.get_window_extent() for legend in figure.legends]
        for number, box in enumerate(boxes):
            assert figure.bbox.contains(box.x0, box.y0)
            assert figure.bbox.contains(box.x1, box.y1)
            assert not any(box.overlaps(other) for other in boxes[:number])


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(UserError, match="diversity: expected 2 numbers, one a layer, got 1"):
        quality([1, 2], diversity=[0.5])
    with pytest.raises(UserError, match="one run or more"):
        quality_figure({})
