import io
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from layersim.commands.compare import compare
from layersim.errors import UserError
from layersim.report.exits import ExitReport
from layersim.report.tradeoff import calibration_table, choices_table, tradeoff_figure, tradeoff_table
from tests.report.test_compare import make_run, record
from tests.report.test_exits import choice, report
from tests.report.test_figures import channel, domain, points, said


def lines(reports: dict[str, ExitReport], width: int = 100) -> list[list[str]]:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(tradeoff_table(reports))
    return [line.split() for line in console.export_text().splitlines() if line.strip()]


def test_curves_bands_and_the_chosen_points_by_layer() -> None:
    picture = tradeoff_figure({"aligned": report(), "_other": report(accuracy=0.75, layers=2, speed=[])})
    layers = picture["concat"][0]
    assert channel(layers, "line", "x")["title"] == "mean exit layer"
    curve, chosen = [(1, 0.5), (1.25, 0.875), (2, 0.9)], [(1.25, 0.875)]
    assert points(layers, "aligned") == curve + chosen
    assert points(layers, "_other") == [*curve, (1.25, 0.75)]
    own = [row for row in layers["data"]["values"] if row["y"] == "aligned" and "low" in row]
    assert [(row["low"], row["high"]) for row in own] == [(0.375, 0.625), (0.8, 0.9375), (0.825, 0.9625)]
    assert domain(layers) == [0.3, 1]
    assert channel(layers, "line", "color")["scale"]["domain"] == ["aligned", "_other"]
    assert "Bands: 95 % bootstrap over samples" in " ".join(said(picture))


def test_measured_time() -> None:
    layers, times = tradeoff_figure({"timed": report(), "not": report(speed=[])})["concat"]
    seen = [
        (1000 * one["seconds"], one["accuracy"])
        for one in sorted(report().speed, key=lambda one: one["mean_exit_layer"])
    ]
    assert points(times, "timed")[: len(seen)] == seen
    assert channel(times, "line", "x")["title"] == "milliseconds a sample"
    assert domain(times) == domain(layers)


def test_without_times_there_is_one_panel() -> None:
    assert len(tradeoff_figure({"run": report(speed=[])})["concat"]) == 1
    with pytest.raises(UserError, match="one run with exits or more"):
        tradeoff_figure({})


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


def test_calibration_without_and_with_temperatures_by_layer() -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(calibration_table(report()), calibration_table(report(temperatures=None)))
    told = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert told[2] == ["1", "0.250", "→", "0.062", "1.000", "→", "0.750", "0.250", "→", "0.062"]
    assert told[3] == ["2", "0.125", "→", "0.125", "0.500", "→", "0.500", "-0.062", "→", "0.000"]
    assert ["1", "0.062", "0.750", "0.062"] in told
    assert any(line[:2] == ["Without", "its"] for line in told)


def test_compare_draws_the_runs_that_have_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make_run(tmp_path / "x1", record(), experiment="standard")
    second = make_run(tmp_path / "x2", record(), experiment="aligned")
    report().write(second)
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


def test_what_is_promised_together_is_a_table() -> None:
    several = report(choices=[choice(), choice(target=0.1, threshold=None, bound=0.08)])
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(choices_table(several))
    rows = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert rows[-2:] == [
        ["0.05", "0.75", "0.049", "1.25", "1.60", "0.875"],
        ["0.1", "none", "0.08", "1.25", "1.60", "0.875"],
    ]
    assert ["and", "for", "≤", "0.1"] in lines({"run": several})
    shift = {"effective_samples": 30.5, "greatest": 4.5, "new_samples": 50, "told_apart": 0.75}
    assert ["as", "of", "new", "data", "30"] in lines({"run": report(shift=shift)})
