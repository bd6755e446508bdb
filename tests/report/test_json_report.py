"""A report that was written is read, whatever its numbers are."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layersim.report.json_report import Numbers, Report
from layersim.report.token_exits import TokenExitReport
from tests.report import test_across, test_exits
from tests.transfer import test_record

CELLS = [[0.1, 0.9, 0.5], [0.5, 0.5, 0.5]]
TRIED = {"threshold": 0.9, "mean_exit_layer": 1.5, "risk": 0.01, "bound": 0.04}
CALIBRATED = {"target": 0.05, "confidence": 0.95, "observed_risk": 0.01, "bound": 0.04, "mean_exit_layer": 1.5}
TIMED = {"batch_size": 1, "seconds": 0.01, "full_seconds": 0.02, "wall_gain": 2.0, "layer_gain": 1.5}
REPORTS: list[Report] = [
    test_exits.report(
        shift={"effective_samples": 30.5, "greatest": 4.5, "new_samples": 50, "told_apart": 0.75},
        plan={"asked": 0.9, "sizes": [1], "ways": [], "pays_from": None, "pays_up_to": None}
        | {"predicted": 0.01, "measured": 0.01},
    ),
    TokenExitReport(
        calibration=CALIBRATED | {"layer_gain": 1.5, "tried": [TRIED]},
        speed=[TIMED],
        **dict.fromkeys(("device", "head", "objective", "weights", "precision"), "x"),
    ),
    test_record.REPORT,
    replace(
        test_across.REPORT,
        null={"p": CELLS, "p_family": CELLS, "calibrated": CELLS, "permutations": 19, "seed": 0},
    ),
]


def places(value: Any, form: Any) -> Iterator[tuple[Any, ...]]:
    """Where a report has numbers that are no counts and are not null where they are absent."""
    match form:
        case Numbers():
            yield from () if form.counts else floats(value)
        case (None, inner):
            yield from () if isinstance(inner, Numbers) and not inner.shape else places(value, inner)
        case [*_, inner]:
            yield from ((at, *rest) for at, item in enumerate(value) for rest in places(item, inner))
        case Mapping():
            for key, item in value.items():
                yield from ((key, *rest) for rest in places(item, form.get(key, form.get(str, object))))


def floats(value: Any) -> Iterator[tuple[Any, ...]]:
    if not isinstance(value, list):
        yield ()
    else:
        yield from ((at, *rest) for at, item in enumerate(value) for rest in floats(item))


def with_nan_at(value: Any, place: tuple[Any, ...]) -> Any:
    if not place:
        return math.nan
    key, *rest = place
    if isinstance(value, dict):
        return value | {key: with_nan_at(value[key], tuple(rest))}
    return [with_nan_at(item, tuple(rest)) if at == key else item for at, item in enumerate(value)]


def at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.FILE)
def test_a_number_that_is_nan_in_any_place_is_read_as_it_was_written(report: Report, tmp_path: Path) -> None:
    found = [*places(vars(report), report._forms())]
    assert {place[0] for place in found} >= {
        "exits.json": {"loss", "full_loss", "temperatures", "calibration", "choices", "shift", "curve", "speed"},
        "token_exits.json": {"calibration", "speed"},
        "transfer.json": {"accuracy", "shifts", "probe"},
        "similarity.json": {"similarity", "null", "identical"},
    }[report.FILE]
    for place in found:
        changed = replace(report, **{place[0]: with_nan_at(getattr(report, place[0]), place[1:])})
        changed.write(tmp_path)
        read = type(report).read(tmp_path)
        assert read is not None, place
        assert math.isnan(at(vars(read), place)), place
        assert json.dumps(vars(read)) == json.dumps(vars(changed)), place
