"""What a quantity takes, and how it is told."""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from callbacks.loggers import logged
from layersim.errors import UserError
from layersim.report.quantity import LAYER, Quantity, curve, curves, single_numbers, told
from layersim.report.records import LayerRecord
from layersim.report.table import layer_cells

FLOAT32 = 13421773 / 2**27
"""0.1 in float32."""


def record(**quantities: Quantity) -> LayerRecord:
    return LayerRecord(epoch=0, step=0, stage="validate", layers=2, samples=80, quantities=quantities)


def written(**quantities: Quantity) -> Any:
    return json.loads(record(**quantities).to_line())["quantities"]


@pytest.mark.parametrize(
    "values",
    [
        np.array([0.1, 0.5], dtype=np.float32),
        [np.float32(0.1), np.float16(0.5)],
        (np.float32(0.1), 0.5),
        torch.tensor([0.1, 0.5]),
        [torch.tensor(0.1), torch.tensor(0.5, dtype=torch.bfloat16)],
        torch.tensor([0.1, 0.5], requires_grad=True),
        np.array([np.float32(0.1), Fraction(1, 2)], dtype=object),
    ],
)
def test_numbers_of_any_library_are_written_as_the_float64_nearest_to_each(values: Any) -> None:
    assert written(own=curve(values))["own"]["values"] == [FLOAT32, 0.5]
    assert curve(values) == curve([FLOAT32, 0.5])
    kept = LayerRecord.from_line(record(own=curve(values)).to_line())
    assert kept == record(own=curve(values))


def test_so_are_those_in_every_other_field() -> None:
    cells = np.array([[np.nan, 0.1], [0.1, np.nan]], dtype=np.float32)
    found = written(
        map=Quantity(
            values=torch.eye(2),
            axes=[LAYER, LAYER],  # type: ignore[arg-type]
            range=np.array([0, 1]),  # type: ignore[arg-type]
            overall=np.float32(0.1),  # type: ignore[arg-type]
            options={"k": np.int64(3), "of": np.arange(2), "exact": np.bool(True), "inner": {"p": Fraction(1, 2)}},
            interval={"confidence": np.float32(0.5), "low": cells, "high": torch.ones(2, 2)},
            null={"p": cells, "p_family": cells, "calibrated": cells, "permutations": np.int64(19), "seed": 0},
        ),
        ticked=Quantity(values=np.float64(0.5) * np.ones(3), axes=("head",), ticks={"head": range(3)}),
        one=Quantity(values=torch.tensor(7)),
    )
    whole = [[None, FLOAT32], [FLOAT32, None]]
    assert found["map"] == {
        "values": [[1.0, 0.0], [0.0, 1.0]],
        "axes": [LAYER, LAYER],
        "range": [0, 1],
        "overall": FLOAT32,
        "options": {"k": 3, "of": [0, 1], "exact": True, "inner": {"p": 0.5}},
        "interval": {"confidence": 0.5, "low": whole, "high": [[1.0, 1.0], [1.0, 1.0]]},
        "null": {"p": whole, "p_family": whole, "calibrated": whole, "permutations": 19, "seed": 0},
    }
    assert found["ticked"] == {"values": [0.5] * 3, "axes": ["head"], "ticks": {"head": [0, 1, 2]}}
    assert found["one"] == {"values": 7}


@pytest.mark.parametrize(
    ("quantity", "message"),
    [
        (curve(np.array([1j, 2])), r"own: expected numbers over layer \(2\), got 2 of type complex128\.$"),
        (curve([object(), 1.0]), r"own: expected numbers over layer \(2\), got 2 of type object\.$"),
        (curve(np.ma.masked_array([0.1, 0.2], [True, False])), "own: expected numbers .* got 2 of type object"),
        (curve(np.array([True, False])), "own: expected numbers .* of type bool"),
        (0.5, r"own: expected a Quantity by its name, got 0\.5\.$"),
        (curve([0.1, 0.2], options={"at": Path("x")}), "own: expected an object of text, numbers and lists of them as"),
        (
            curve([0.1, 0.2], options={1: 2}),
            "own: expected an object of text, numbers and lists of them as its options",
        ),
        (
            curve([0.1, 0.2], overall=torch.ones(2)),
            r"own: expected a number or null as its overall, got \[1\.0, 1\.0\]",
        ),
        (curve([0.1, 0.2], interval={"low": [0, 0], "high": [1j, 1]}), "own: expected numbers as high of its interval"),
        (
            Quantity(values=[1.0], axes=("epoch",), ticks={"epoch": []}),
            r"own: expected numbers over epoch \(0\), got 1 ",
        ),
    ],
)
def test_what_is_no_number_is_refused_before_anything_is_written(quantity: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        record(own=quantity)


def test_an_infinite_end_is_none() -> None:
    with pytest.raises(UserError, match="expected the least before the most as its range, got nan … 1"):
        record(own=curve([0, 0], range=(math.nan, 1)))
    assert curve([1.0, 2.0], range=np.array([0, np.inf])).range == (0, None)


def test_labels_that_two_have_keep_the_two_apart() -> None:
    same = {name: curve([value, 0.5], label="x") for name, value in (("a", 0.25), ("b", 0.75))}
    numbers = {name: Quantity(values=value, label="y") for name, value in (("c", 1.0), ("d", 2.0))}
    assert layer_cells(record(**same)) == {"x": ["0.250", "0.500"], "b": ["0.750", "0.500"]}
    assert [*curves({"b": same["b"]})] == ["b"], "by its own name whatever else was measured"
    assert single_numbers(numbers, 2, 80) == {"y": "1.000", "d": "2.000"}


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ("share", "70.0%, 65.0% … 75.0% (k 3)"),
        ("samples", "0.9%, 0.8% … 0.9% (k 3)"),
        (LAYER, "0.70 of 2, 0.65 of 2 … 0.75 of 2 (k 3)"),
        ("nats", "0.700, 0.650 … 0.750 (k 3)"),
    ],
)
def test_an_intervals_ends_have_the_unit_of_what_is_between(unit: str, said: str) -> None:
    ends = {"confidence": 0.95, "low": 0.65, "high": 0.75}
    number = Quantity(values=0.7, unit=unit, interval=ends, options={"k": 3})
    assert single_numbers({"own": number}, 2, 80) == {"own": said}


@pytest.mark.parametrize(("unit", "said"), [("share", "nan"), ("samples", "nan"), (LAYER, "none"), ("", "nan")])
def test_what_has_no_value_has_no_unit(unit: str, said: str) -> None:
    assert told(math.nan, unit, 2, 80) == said


def test_a_mean_over_both_infinities_is_logged_as_nan() -> None:
    quantity = Quantity(values=[[-math.inf, math.inf], [1.0, 2.0], [1e308, 1e308]], axes=("epoch", LAYER))
    first, second, third = dict(logged({"own": quantity})).values()
    assert math.isnan(first)
    assert second == 1.5
    assert third == math.inf
