"""Heat maps beside what chance makes."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from layersim.report.figures import matrix
from layersim.report.quantity import LAYER, Quantity, single_numbers
from tests.report.test_figures import svg


def with_null(p: list[list[float]], **told: Any) -> Quantity:
    values = np.full(np.shape(p), 0.5).tolist()
    told = {"axes": (LAYER, LAYER), "range": (0, 1)} | told
    null = {"p": p, "p_family": p, "calibrated": values, "permutations": 99, "seed": 0}
    return Quantity(values=values, null=null, **told)


def test_cells_that_chance_explains_are_hatched_and_counted() -> None:
    nan = math.nan
    quantity = with_null([[nan, 0.01, 0.06], [0.01, nan, 0.05], [0.06, 0.05, nan]])
    picture = matrix(quantity, "cka")
    assert [row["chance"] for row in picture["data"]["values"]] == [False, False, True, False, False, False, True] + [
        False
    ] * 2
    text = "".join(svg(picture).itertext())
    assert "Hatched: no more than chance,1 of 3 pairs (family-wise p > 0.05, 99 permutations)" in text
    paths = [node.get("d", "") for node in svg(picture).iter() if node.get("aria-roledescription") == "point"]
    assert len([path for path in paths if path.count("M") == 8]) == 2
    plain = matrix(replace(quantity, null=None), "cka")
    assert not any("chance" in row for row in plain["data"]["values"])
    assert plain["title"] == "Cka"


def test_of_what_is_not_symmetric_and_of_two_models_every_cell_is_a_pair() -> None:
    p = [[math.nan, 0.01], [0.06, math.nan]]
    assert with_null(p).within_chance() == "1 of 2 pairs (family-wise p > 0.05, 99 permutations)"
    assert with_null([[0.2, 0.2], [0.2, 0.01]]).within_chance().startswith("1 of 1 pairs"), "its layers alone"
    two = with_null([[0.2, 0.2], [0.2, 0.01]], axes=("layer of a", "layer of b"))
    assert two.within_chance().startswith("3 of 4 pairs")
    assert with_null(p).to_last().null == {
        "p": [0.01, pytest.approx(math.nan, nan_ok=True)],
        "p_family": [0.01, pytest.approx(math.nan, nan_ok=True)],
        "calibrated": [0.5, 0.5],
        "permutations": 99,
        "seed": 0,
    }
    told = single_numbers({"cka": with_null(p, label="linear CKA")}, 2, 9)
    assert told == {"linear CKA no more than chance": "1 of 2 pairs (family-wise p > 0.05, 99 permutations)"}
