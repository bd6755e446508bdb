import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from layersim.errors import UserError
from layersim.report.quantity import LAYER, Quantity
from layersim.report.records import LayerRecord, append_record, read_records, shared_name
from tests.report.recorded import quantities, recorded

HEAD = {"version": 1, "epoch": 0, "step": 0, "stage": "test", "layers": 2, "samples": 1, "unit": "samples"}
MATRIX = {"cka": [[1.0, 0.7], [0.7, 1.0]]}


def record(**changes: Any) -> LayerRecord:
    values: dict[str, Any] = {
        "epoch": 3,
        "step": 88,
        "stage": "validate",
        "layers": 2,
        "samples": 360,
        "accuracy": [0.1, 0.9],
        "saturation": [328, 32],
        "saturated_early": 0.91,
        "similarity": MATRIX,
        "options": {"cka": {"estimator": "minibatch", "batch": 64}},
    }
    return recorded(**(values | changes))


def bare(**changes: Any) -> LayerRecord:
    values: dict[str, Any] = {"epoch": 0, "step": 0, "stage": "test", "layers": 2, "samples": 1}
    return recorded(**(values | changes))


def test_a_line_has_a_version_its_head_and_every_quantity_by_name() -> None:
    line = json.loads(record().to_line())
    assert list(line) == [*HEAD, "quantities"]
    assert list(line["quantities"]) == ["accuracy", "saturation", "saturated_early", "cka"]
    assert line["quantities"]["accuracy"] == {
        "values": [0.1, 0.9], "axes": ["layer"], "range": [0, 1], "better": "higher",
    }  # fmt: skip
    assert line["quantities"]["cka"]["values"] == [[1.0, 0.7], [0.7, 1.0]]
    assert line["quantities"]["cka"]["options"] == {"estimator": "minibatch", "batch": 64}


def test_what_was_not_measured_is_absent_and_zero_was_measured() -> None:
    assert json.loads(bare().to_line()) == HEAD | {"quantities": {}}
    line = json.loads(bare(saturated_early=0.0, saturation=[0, 0]).to_line())["quantities"]
    assert (line["saturated_early"]["values"], line["saturation"]["values"]) == (0.0, [0, 0])


def test_round_trip_of_all_kinds_and_of_what_nobody_has_heard_of() -> None:
    ends = {"confidence": 0.9, "low": [[1.0, 0.6], [0.6, 1.0]], "high": [[1.0, 0.8], [0.8, 1.0]]}
    ticks = {"head": ["a", None, "c"]}
    strange = Quantity(
        values=[[0.5, 1.0]] * 3, axes=("head", LAYER), label="pull", unit="bits", ticks=ticks, overall=2.0
    )
    curve = {"threshold": [0.0, 0.5, None], "mean_exit_layer": [1.0, 1.5, 2.0], "accuracy": [0.1, 0.7, 0.9]}
    written = record(intervals={"cka": ends}, strange=strange, exit_curve=curve, to_epoch={"cka": {4: [1.0, 0.5]}})
    assert LayerRecord.from_line(written.to_line()) == written
    tested = LayerRecord.from_line(record(nulls={"cka": NULL}).to_line()).quantities["cka"].null or {}
    assert math.isnan(tested["p"][0][0])
    assert tested["p"][0][1] == 0.5
    assert tested["permutations"] == 19
    assert record(left_out=3).left_out == 3
    assert "left_out" not in record().to_line()
    for other in (
        record(),
        bare(),
        record(left_out=3),
        record(unit="tokens", samples=9, saturation=None, perplexity=[8.5, 7.0]),
    ):
        assert LayerRecord.from_line(other.to_line()) == other


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_lacks_is_null_and_read_as_nan(value: float) -> None:
    written = record(loss=[value, 0.5], similarity={"cka": [[value, 0.5], [0.5, 1.0]]}, mean_saturation_layer=value)
    line = json.loads(written.to_line())["quantities"]
    assert line["loss"]["values"] == [None, 0.5]
    assert line["cka"]["values"] == [[None, 0.5], [0.5, 1.0]]
    assert line["mean_saturation_layer"]["values"] is None
    read = LayerRecord.from_line(written.to_line())
    assert math.isnan(read.values("loss")[0])
    assert read.values("loss")[1] == 0.5
    assert math.isnan(read.values("cka")[0][0])
    assert math.isnan(read.values("mean_saturation_layer"))
    assert read.to_line() == written.to_line()


def test_an_option_and_a_tick_that_are_null_stay_null() -> None:
    curve = {"threshold": [0.0, None], "mean_exit_layer": [1.0, 2.0], "accuracy": [0.1, 0.9]}
    read = LayerRecord.from_line(record(options={"cka": {"batch": None}}, exit_curve=curve).to_line())
    assert read.quantities["cka"].options == {"batch": None}
    assert read.quantities["exit_curve"].ticks["threshold"] == [0.0, None]


def test_of_a_newer_version_the_rest_is_read_and_the_unknown_named() -> None:
    line = json.loads(record().to_line()) | {"version": 7, "weather": 1}
    line["quantities"]["cka"]["mood"] = {"mean": 0.2}
    with pytest.warns(UserWarning, match="a record of version 7, read by version 1: weather, cka.mood is not known"):
        assert LayerRecord.from_line(json.dumps(line)) == record()


def of(values: Any, *axes: str, **told: Any) -> Quantity:
    return Quantity(values=values, axes=axes, **told)


CELLS = [[math.nan, 0.5], [0.5, math.nan]]
NULL = {"p": CELLS, "p_family": CELLS, "calibrated": CELLS, "permutations": 19, "seed": 0}
ENDS = {"low": [[0, 0], [0, 0]], "high": [[0, 0], [0, 0]]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accuracy": [0.1]}, r"^accuracy: expected numbers over layer \(2\), got 1 of type float64\.$"),
        ({"loss": ["0.1", "0.2"]}, r"^loss: expected numbers over layer \(2\), got 2 of type <U3\.$"),
        ({"similarity": {"cka": [[1.0, 0.0]]}}, r"cka: expected numbers over layer \(2\) × layer \(2\), got 1 × 2 of"),
        ({"similarity": {"cka": [[1.0], [0.0, 1.0]]}}, "cka: .*got rows of different lengths"),
        ({"saturated_early": True}, "saturated_early: expected numbers over no axis, got one value of type bool"),
        ({"own": of([1.0], "class", ticks={"class": [3, 4]})}, r"own: expected numbers over class \(2\), got 1 of"),
        ({"own": of(1.0, ticks={"class": [3, 4]})}, "own: expected ticks of no axis, got 2 of class"),
        ({"own": of([1.0], "class", ticks={"other": [3, 4]})}, "own: expected ticks of class, got 2 of other"),
        (
            {"nulls": {"cka": NULL | {"p": [0.5]}}},
            r"cka: expected p of its null in the shape.*got \(1,\)",
        ),
        ({"nulls": {"cka": NULL | {"calibrated": [["a"] * 2] * 2}}}, "cka: expected numbers as calibrated of its null"),
        (
            {"nulls": {"cka": NULL | {"permutations": None}}},
            "cka: expected an object with a whole number",
        ),
        ({"intervals": {"cka": {"low": ENDS["low"]}}}, r"cka: expected high of its interval in the shape .*got \(\)"),
        ({"own": of(1.0, range=(1, 0))}, "own: expected the least before the most as its range, got 1 … 0"),
        ({"own*": of(1.0)}, r"'own\*': expected a quantity's name, in letters and without \*"),
        ({" ": of(1.0)}, "' ': expected a quantity's name"),
    ],
)
def test_a_quantity_that_does_not_fit_its_axes_is_refused_by_its_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        record(**changes)
    path = tmp_path / "layers.jsonl"
    line = json.loads(record().to_line())
    line["quantities"] |= {
        name: one.to_json() for name, one in quantities(**({"similarity": MATRIX} | changes)).items()
    }
    path.write_text(record().to_line() + "\n" + json.dumps(line) + "\n")
    with pytest.raises(UserError, match=r"layers\.jsonl, line 2: " + message.removeprefix("^")):
        read_records(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "fit"}, "stage: expected one of validate, test, got 'fit'"),
        ({"unit": "words"}, "unit: expected one of samples, tokens, got 'words'"),
        ({"layers": 0}, "layers: expected one whole number, 1 or more, got 0"),
        ({"samples": 0}, "samples: expected one whole number, 1 or more, got 0"),
        ({"epoch": 1.5}, "epoch: expected one whole number, 0 or more, got 1.5"),
        ({"step": True}, "step: expected one whole number, 0 or more, got True"),
    ],
)
def test_a_head_that_is_none_is_refused_by_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bare(**changes)
    with pytest.raises(UserError, match=message):
        LayerRecord.from_line(json.dumps(json.loads(bare().to_line()) | changes))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no JSON"),
        ('{"epoch": 3', "no JSON"),
        ("[1, 2]", r"expected a JSON object, got \[1, 2\]"),
        ("{}", "expected the keys version, epoch, step, layers, samples, stage, unit, quantities; version, epoch"),
        (bare().to_line().replace('"step": 0', '"step": NaN'), "NaN is written as null"),
        (json.dumps(HEAD | {"quantities": []}), r"quantities: expected a JSON object, got \[\]"),
        (json.dumps(HEAD | {"quantities": {"own": {}}}), "own: expected a JSON object with values, got {}"),
        (json.dumps(HEAD | {"quantities": {"own": 3}}), "own: expected a JSON object with values, got 3"),
    ],
)
def test_a_broken_line_before_the_last_is_refused_by_its_number(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "layers.jsonl"
    path.write_text("\n".join([bare().to_line(), line, bare().to_line(), ""]))
    with pytest.raises(UserError, match=rf"layers\.jsonl, line 2: .*{message}"):
        read_records(path)


def test_runs_are_told_apart_by_the_first_curve_that_is_better_high_or_low() -> None:
    assert (record().worth, record().matrix) == ("accuracy", "cka")
    assert (bare().worth, bare().matrix) == (None, None)
    gpt = record(perplexity=[9.0, 3.0])
    assert gpt.worth == "perplexity"
    assert shared_name([gpt, record()], "worth") == "accuracy"
    assert shared_name([record(accuracy=None), gpt], "worth") == "perplexity"
    assert shared_name([bare()], "worth") == ""


def test_append_then_read(tmp_path: Path) -> None:
    path = tmp_path / "run" / "layers.jsonl"
    written = [record(epoch=epoch) for epoch in range(3)]
    for one in written:
        append_record(path, one)
    assert read_records(path) == written
    assert path.read_bytes().count(b"\n") == 3
    assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"own": of(1.0, options={"seed": 2**64 - 1})}, "^own: expected numbers of at most 64 bits, got a larger one"),
        ({"own": of(2**63)}, "^own: expected numbers of at most 64 bits, got a larger one"),
        ({"own": of(1.0, label="\ud800")}, r"^own: expected text, got '\\ud800'"),
        ({f"own{number}": of(1.0) for number in range(257)}, "^quantities: expected at most 256, got 257"),
        ({"own": of([[math.pi] * 500_000] * 2, LAYER, "token")}, "^own has 1,000,000 values: a record has 19,000,"),
        ({1: of(1.0)}, "^1: expected a Quantity by its name"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(found: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "layers.jsonl"
    append_record(path, record())
    with pytest.raises(UserError, match=message):
        append_record(path, LayerRecord(epoch=0, step=0, stage="test", layers=2, samples=1, quantities=found))
    assert read_records(path) == [record()]


def test_a_line_cut_anywhere_is_left_out_and_the_next_append_mends_the_file(tmp_path: Path) -> None:
    whole, path = record().to_line() + "\n", tmp_path / "layers.jsonl"
    for cut in (1, len(whole) // 2, len(whole) - 1):
        path.write_text(whole + whole[:cut])
        with pytest.warns(UserWarning, match="last line was cut by an interruption and is left out") as told:
            assert read_records(path) == [record()]
        assert len(told) == 1
        with pytest.warns(UserWarning, match="is taken off"):
            append_record(path, record(epoch=4))
        assert read_records(path) == [record(), record(epoch=4)]


def test_a_line_that_there_is_no_room_for_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "layers.jsonl"
    append_record(path, record())

    def full(descriptor: int) -> None:
        assert len(path.read_bytes().splitlines()) == 2
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device \([\d,]+ are free\): .*layers\.jsonl"):
        append_record(path, record(epoch=4))
    assert read_records(path) == [record()]


def test_only_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "layers.jsonl"
    path.write_text('{"epo')
    with pytest.warns(UserWarning, match="left out"):
        assert read_records(path) == []


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected the records of a run in .*absent\.jsonl.*No such file"):
        read_records(tmp_path / "absent.jsonl")


def test_report_starts_without_torch() -> None:
    heavy = ("torch", "lightning", "matplotlib.pyplot")
    code = f"import sys, layersim.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
