"""The page of several runs: means, differences, exits, and what was not measured alike."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layersim.report.page import write_page
from layersim.report.page.comparison import (
    compared_headline,
    differences,
    exit_charts,
    group_runs,
    interval_table,
    mean_interval,
)
from layersim.report.page.section import headline
from layersim.report.quantity import LAYER, Quantity, curve
from tests.report.page_runs import Reader, make_run, record
from tests.report.test_exits import report


def test_interval_is_students() -> None:
    mean, half = mean_interval([[1.0, 0.5], [2.0, 0.5], [3.0, 0.5]])
    assert mean.tolist() == [2.0, 0.5]
    assert half == pytest.approx([4.302652729749464 / math.sqrt(3), 0.0], rel=1e-9)  # t(0.975, 2), from tables 4.303
    mean, half = mean_interval([[0.25, 0.75]])
    assert mean.tolist() == [0.25, 0.75]
    assert np.isnan(half).all()


def test_interval_covers_the_truth_19_times_in_20() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(0.3, 0.1, size=(4, 40_000))  # 40 000 layers of 4 runs
    mean, half = mean_interval(draws)
    assert (abs(mean - 0.3) < half).mean() == pytest.approx(0.95, abs=0.005)
    normal = 1.96 * draws.std(axis=0, ddof=1) / 2
    assert (abs(mean - 0.3) < normal).mean() < 0.9  # the control: without Student's factor it is no 95 % interval


def test_runs_are_grouped_by_their_name_less_the_seed_and_by_their_depth() -> None:
    names = ["a", "b-seed1", "a", "b-seed2", "b", "a", "seed3"]
    records = [record(layers=3 if place == 5 else 2) for place in range(7)]
    groups = {group.name: group.members for group in group_runs(names, records)}
    assert groups == {"a (2 layers)": [0, 2], "b": [1, 3, 4], "a (3 layers)": [5], "seed3": [6]}


@pytest.mark.parametrize(
    ("better", "order"), [("higher", "0.900 c 0.500 a 0.100 d"), ("lower", "0.100 d 0.500 a 0.900 c")]
)
def test_groups_without_a_value_come_last_and_names_keep_their_capitals(better: Any, order: str) -> None:
    values = {"a": 0.5, "b": math.nan, "c": 0.9, "e": math.nan, "d": 0.1}
    groups = {name: curve([value], better=better) for name, value in values.items()}
    told = compared_headline("NC1 of CKA", groups)
    place = f"{order} nan b nan e"
    assert re.sub("[(),]", "", told) == f"NC1 of CKA at half of the layers {place}; at the last {place}."
    assert "<caption>NC1 of CKA by layer:" in interval_table("NC1 of CKA", groups)
    depth = Quantity(values=2, unit=LAYER, label="depth by CKA")
    assert headline(record(accuracy=None, loss=None, depth=depth)).endswith(", depth by CKA 2 of 2.")


def test_differences_but_the_seed_are_told() -> None:
    base = {"experiment": "a", "model": {"optimizer": {"lr": 0.1}, "head": None}}
    assert differences([base | {"seed_everything": 0}, base | {"seed_everything": 1, "experiment": "b"}]) == []
    splits: list[dict[str, Any]] = [
        base | {"seed_everything": seed, "data": {"init_args": {"seed": seed, "size": 8}}} for seed in (0, 1)
    ]
    assert differences(splits) == []
    splits[1] |= {"seed_everything": 0}
    assert differences(splits) == [], "the same weights on another split"
    splits[1]["data"]["init_args"]["size"] = 16
    assert differences(splits) == ["their configurations differ in data.init_args.size"]
    other = {"seed_everything": 0, "model": {"optimizer": {"lr": 0.2}, "head": None}}
    assert differences([base | {"seed_everything": 0}, other]) == [
        "their configurations differ in model.optimizer.lr",
        "more than one has the seed 0",
    ]


def test_several_runs_are_compared_over_their_seeds(tmp_path: Path) -> None:
    def one(name: str, experiment: str, seed: int, *accuracy: float) -> Path:
        config = f"experiment: {experiment}\nseed_everything: {seed}\n"
        return make_run(tmp_path / name, record(accuracy=list(accuracy)), config=config)

    runs = [one("x1", "a", 1, 0.5, 0.8), one("x2", "a", 2, 0.7, 0.8), one("x3", "b", 1, 0.25, 0.5)]
    assert write_page(runs, tmp_path / "page.html") == []
    read = Reader(tmp_path / "page.html")
    half = 12.706204736432095 * 0.1  # t(0.975, 1) s / √2 with s = 0.2 / √2
    chart = read.data["static"][0]
    assert (chart["title"], chart["large"]) == ("Accuracy by layer", True)
    band = chart["record"]["quantities"]["a, 2 runs"]
    assert band["values"] == [0.6, 0.8]
    assert band["low"] == pytest.approx([0.6 - half, 0.8], abs=1e-5)
    assert band["high"] == pytest.approx([0.6 + half, 0.8], abs=1e-5)
    assert chart["record"]["quantities"]["b"] == {"values": [0.25, 0.5]}
    assert (
        "Accuracy at half of the layers 0.600 (a, 2 runs), 0.250 (b); at the last 0.800 (a, 2 runs), 0.500 (b)."
        in (read.texts["p"])
    )
    maps = [each["title"] for each in read.data["static"] if "spans" in each]
    assert maps[:3] == [f"Cosine similarity, layer by layer: {name}" for name in ("a (x1)", "a (x2)", "b")]
    (saturated,) = (each for each in read.data["static"] if each["title"] == "Saturated here by layer")
    assert saturated["record"]["quantities"]["b"]["values"] == [79 / 80, 1 / 80]
    assert read.texts["td"][:4] == ["0.600 ± 1.271", "0.250", "0.800 ± 0.000", "0.500"]
    assert "a (x2)" in read.texts["th"]
    notices = write_page([runs[0], one("x4", "a", 1, 0.5, 0.5)], tmp_path / "page.html")
    assert "the seed 1" in notices[0]
    assert notices == Reader(tmp_path / "page.html").texts["li"]


def test_what_nobody_has_heard_of_is_compared(tmp_path: Path) -> None:
    ticks = {"season": ["dry", "wet"]}
    own = {
        "wobble": Quantity(values=[1.0, 10.0], axes=(LAYER,), label="wobbling"),
        "drift": Quantity(values=[0.5, 0.75], axes=("season",), ticks=ticks),
        "tilt": Quantity(values=[[-0.5, 0.25]], axes=("head", LAYER)),
        "heat": Quantity(values=36.6, unit="°C"),
    }
    runs = [make_run(tmp_path / name, record(**own), config=f"experiment: {name}\n") for name in "ab"]
    runs.append(make_run(tmp_path / "c", record(), config="experiment: c\n"))
    write_page(runs, tmp_path / "page.html")
    read = Reader(tmp_path / "page.html")
    shown = {
        one["title"]: [*one["record"]["quantities"]] if "record" in one else one["run"] for one in read.data["static"]
    }
    assert shown["Wobbling by layer"] == shown["Drift by season"] == ["a", "b"]
    maps = {title: run for title, run in shown.items() if title.startswith("Tilt")}
    assert maps == {"Tilt by head and layer: a": 0, "Tilt by head and layer: b": 1}
    assert "heat" in read.texts["th"]


def test_exits_and_seconds_are_shown_where_there_are_any() -> None:
    layers, seconds, *calibrated = exit_charts({"timed": report(), "not": report(speed=[], temperatures=None)})
    timed = layers["record"]["quantities"]["timed"]
    assert layers["title"] == "Calibrated exits: accuracy by mean exit layer"
    assert (timed["ticks"]["mean exit layer"], timed["values"]) == ([1.0, 1.25, 2.0], [0.5, 0.875, 0.9])
    assert (timed["low"], timed["high"]) == ([0.375, 0.8, 0.825], [0.625, 0.9375, 0.9625])
    assert [(each["series"], each["x"], each["value"]) for each in layers["extra"]] == [
        ("timed", 1.25, 0.875),
        ("not", 1.25, 0.875),
    ]
    assert [*seconds["record"]["quantities"]] == ["timed"]
    assert seconds["along"] == "milliseconds a sample"
    assert len(exit_charts({"not": report(speed=[])})) == 1 + 3
    error = calibrated[0]
    assert error["title"] == "Exits: calibration error by layer"
    told = {name: one["values"] for name, one in error["record"]["quantities"].items()}
    assert told == {"timed, untempered": [0.25, 0.125], "timed": [0.0625, 0.125], "not": [0.0625, 0.125]}
    assert exit_charts({}) == []


def test_measures_that_were_not_computed_alike_are_told(tmp_path: Path) -> None:
    ways = [{"cosine": {"centering": way}, "cka": {"batch": 64}} for way in ("samples", "components")]
    alike = Quantity(values=1.0, options={"words": "two\nlines"})
    runs = [
        make_run(
            tmp_path / f"x{i}",
            record(options=options, **{"top: k": Quantity(values=1.0, options={"k": i}), "alike": alike}),
            config=f"experiment: run{i}\n",
        )
        for i, options in enumerate(ways)
    ]
    assert write_page(runs, tmp_path / "page.html") == [
        "cosine was computed in different ways, its numbers do not compare.",
        "top: k was computed in different ways, its numbers do not compare.",
    ]
    read = Reader(tmp_path / "page.html")
    facts = [*zip(read.texts["dt"], read.texts["dd"], strict=True)]
    assert [value for name, value in facts if name == "cosine"] == [
        "centering samples",
        "centering components",
    ]
