import io
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.collections import PolyCollection
from PIL import Image
from rich.console import Console

from layersim.commands.compare import compare
from layersim.errors import UserError
from layersim.report.exits import ExitReport, write_exit_report
from layersim.report.tradeoff import tradeoff_figure, tradeoff_table
from tests.report.test_compare import make_run, record
from tests.report.test_exits import report, speed


def lines(reports: dict[str, ExitReport], width: int = 100) -> list[list[str]]:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(tradeoff_table(reports))
    return [line.split() for line in console.export_text().splitlines() if line.strip()]


def points(line: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in line.get_xydata()]


def test_the_left_panel_shows_curves_bands_and_the_chosen_points() -> None:
    figure = tradeoff_figure({"aligned": report(), "_other": report(accuracy=0.75, layers=2, speed=[])})
    layers = figure.axes[0]
    assert layers.get_xlabel() == "mean exit layer"
    first, second, chosen, other = layers.lines
    assert points(first) == points(second) == [(1, 0.5), (1.25, 0.875), (2, 0.9)]
    assert (points(chosen), points(other)) == ([(1.25, 0.875)], [(1.25, 0.75)])
    assert first.get_color() == chosen.get_color() != second.get_color()
    assert chosen.get_marker() != other.get_marker()
    bands = [artist for artist in layers.collections if isinstance(artist, PolyCollection)]
    corners = {tuple(corner) for corner in bands[0].get_paths()[0].vertices.tolist()}  # type: ignore[union-attr]
    assert {(1, 0.375), (1, 0.625), (1.25, 0.8), (1.25, 0.9375), (2, 0.825), (2, 0.9625)} <= corners
    assert layers.get_ylim() == (0.3, 1)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["aligned", "_other"]


def test_the_right_panel_shows_measured_time_over_the_full_models() -> None:
    figure = tradeoff_figure({"timed": report(), "not": report(speed=[])})
    times = figure.axes[1]
    one, curve, empty, chosen = times.lines
    assert list(one.get_xdata()) == [1, 1]
    assert points(curve) == [(pytest.approx(1 / 1.5), 0.875), (pytest.approx(1 / 0.9), 0.875)]
    assert points(empty) == []
    assert points(chosen) == [(pytest.approx(1 / 1.5), 0.875)]
    assert times.get_xlim() == (0, pytest.approx(1.05 / 0.9))
    assert times.get_ylim() == figure.axes[0].get_ylim()


def test_without_times_there_is_one_panel() -> None:
    assert len(tradeoff_figure({"run": report(speed=[])}).axes) == 1
    with pytest.raises(UserError, match="one run with exits or more"):
        tradeoff_figure({})


@pytest.mark.parametrize("speeds", [[], [speed()]])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_panels_lie_apart_and_on_the_sheet(count: int, speeds: list[dict[str, Any]]) -> None:
    figure = tradeoff_figure({f"a rather long name of run {number}": report(speed=speeds) for number in range(count)})
    figure.canvas.draw()
    boxes: list[Any] = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    boxes += [text.get_window_extent() for text in figure.texts]
    for number, box in enumerate(boxes):
        assert figure.bbox.contains(box.x0, box.y0)
        assert figure.bbox.contains(box.x1, box.y1)
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_the_table_of_three_runs_fits_80_columns() -> None:
    separate = {"model": 12515, "head": 340, "separate_heads": 12515, "share_saved": 170 / 12515}
    runs = {
        "digits/last_layer": report(threshold=None, promise=None),
        "[red]digits/aligned": report(),
        "digits/separate": report(parameters=separate, speed=[], batch_size=None, policy="patience", threshold=2.0),
    }
    table = lines(runs, width=80)
    assert table[0] == ["exits", "digits/last_layer", "[red]digits/aligned", "digits/separate"]
    assert table[2:] == [
        ["policy", "confidence", "confidence", "patience"],
        ["threshold", "none", "0.75", "2"],
        ["chosen", "by", "budget", "error", "≤", "0.05", "error", "≤", "0.05"],
        ["samples", "80", "80", "80"],
        ["mean", "exit", "layer", "1.25", "of", "2", "1.25", "of", "2", "1.25", "of", "2"],
        ["layer", "gain", "1.60", "1.60", "1.60"],
        ["measured", "gain", "0.90", "1.50"],
        ["timed", "on", "cpu,", "batch", "64", "cpu,", "batch", "64"],
        ["accuracy", "at", "exits", "0.875", "0.875", "0.875"],
        ["full", "accuracy", "0.900", "0.900", "0.900"],
        ["parameters", "12,345", "12,345", "12,515"],
        ["saved", "by", "one", "head", "1.4%", "1.4%", "0.0%"],
    ]


def test_compare_draws_the_runs_that_have_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_run(tmp_path / "x1", record(), experiment="standard")
    second = make_run(tmp_path / "x2", record(), experiment="aligned")
    write_exit_report(second, report())
    figure = tmp_path / "out" / "c.png"
    compare([first, second], output=figure)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["exits", "aligned"] in printed
    assert ["layer", "gain", "1.60"] in printed
    assert ["Figure:", str(tmp_path / "out" / "c-tradeoff.png")] in printed
    with Image.open(tmp_path / "out" / "c-tradeoff.png") as image:
        image.load()
        assert image.format == "PNG"
    (second / "exits.json").write_text("{")
    compare([first, second], output=figure)
    assert re.search(r"x2 is left out: .*x2/exits\.json is damaged", capsys.readouterr().out)
    with pytest.raises(UserError, match=r"x2/exits\.json is damaged"):
        compare([second], output=figure)
