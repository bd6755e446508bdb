"""The comparison of two models as record, table and figure."""

import json
import math
from dataclasses import replace
from pathlib import Path

import altair
import pytest
from rich.console import Console

from layersim.errors import UserError
from layersim.report.across import AcrossReport, across_figure, across_table
from tests.report.test_figures import channel, svg

NAN = math.nan
REPORT = AcrossReport(
    models={side: {"name": f"runs/model-{side}", "given": side} for side in "ab"},
    measure="cka",
    label="linear CKA",
    range=(0, 1),
    options={"estimator": "debiased"},
    identical=1.0,
    data={"class_path": "Digits"},
    split="val",
    samples=360,
    similarity=[[0.2, 0.9, NAN], [NAN, NAN, NAN]],
)


def test_best_matches_leave_out_what_could_not_be_measured() -> None:
    assert REPORT.matches_of_a == [2, None]
    assert REPORT.matches_of_b == [1, 1, None]


def test_of_a_distance_the_least_is_best() -> None:
    assert replace(REPORT, identical=0.0).matches_of_a == [1, None]


def test_the_file_is_json_with_null(tmp_path: Path) -> None:
    read = json.loads(REPORT.write(tmp_path).read_text())
    assert read["similarity"] == [[0.2, 0.9, None], [None, None, None]]
    assert read["matches"] == {"a": [2, None], "b": [1, 1, None]}
    assert (read["layers"], read["measure"], read["samples"]) == ({"a": 2, "b": 3}, "cka", 360)


def test_the_table_says_both_ways() -> None:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(across_table(REPORT))
    lines = [line.split() for line in captured.get().splitlines()]
    assert ["1", "2", "0.900", "1", "0.200"] in lines
    assert ["2", "none", "nan", "1", "0.900"] in lines
    assert ["3", "none", "nan"] in lines
    assert "cka of 360 samples: estimator debiased" in captured.get()


def test_the_figure_outlines_each_rows_best_match() -> None:
    picture = across_figure(REPORT)
    assert picture["layer"][-1]["data"]["values"] == [{"x": 2, "y": "1"}]
    assert channel(picture, "rect", "x")["title"] == "layer of runs/model-b"
    assert channel(picture, "rect", "y")["title"] == "layer of runs/model-a"
    assert len([node for node in svg(picture).iter() if node.get("stroke-width") == "2"]) == 1
    altair.LayerChart.from_dict(picture)


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(UserError, match="similarity: expected rows × columns numbers, got rows of different lengths"):
        replace(REPORT, similarity=[[1.0, 2.0, 3.0], [1.0]])
