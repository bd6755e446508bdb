import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from layersim.errors import UserError
from layersim.report.records import EffectiveDepth, LayerRecord, append_record, read_records

DESIGN_KEYS = [
    "epoch", "step", "stage", "layers", "samples", "accuracy", "loss", "saturation", "saturated_early",
    "mean_saturation_layer", "similarity", "options",
]  # fmt: skip


def record(**changes: Any) -> LayerRecord:
    values: dict[str, Any] = {
        "epoch": 3,
        "step": 88,
        "stage": "validate",
        "layers": 2,
        "samples": 360,
        "accuracy": [0.1, 0.9],
        "loss": [2.3, 0.25],
        "saturation": [328, 32],
        "saturated_early": 0.91,
        "mean_saturation_layer": 1.09,
        "similarity": {"cosine": [[1.0, 0.5], [0.5, 1.0]], "cka": [[1.0, 0.7], [0.7, 1.0]]},
        "options": {"cosine": {"centering": "samples"}, "cka": {"estimator": "minibatch", "batch": 64}},
    }
    return LayerRecord(**(values | changes))


def bare(**changes: Any) -> LayerRecord:
    values: dict[str, Any] = {"epoch": 0, "step": 0, "stage": "test", "layers": 2, "samples": 1}
    return LayerRecord(**(values | changes))


def test_line_has_the_keys_of_the_design_in_their_order() -> None:
    line = json.loads(record().to_line())
    assert list(line) == DESIGN_KEYS
    assert line["saturation"] == [328, 32]
    assert line["similarity"] == {"cosine": [[1.0, 0.5], [0.5, 1.0]], "cka": [[1.0, 0.7], [0.7, 1.0]]}
    assert line["options"]["cka"] == {"estimator": "minibatch", "batch": 64}


def test_what_was_not_measured_is_absent() -> None:
    assert json.loads(bare().to_line()) == {"epoch": 0, "step": 0, "stage": "test", "layers": 2, "samples": 1}


def test_zero_was_measured() -> None:
    line = json.loads(bare(saturated_early=0.0, saturation=[0, 0]).to_line())
    assert (line["saturated_early"], line["saturation"]) == (0.0, [0, 0])


def test_round_trip() -> None:
    for written in (record(), bare(), record(effective_depth=EffectiveDepth(epsilon=0.05, layer=2))):
        assert LayerRecord.from_line(written.to_line()) == written


def test_effective_depth_is_an_object_in_the_line() -> None:
    line = json.loads(record(effective_depth=EffectiveDepth(epsilon=0.05, layer=2)).to_line())
    assert line["effective_depth"] == {"epsilon": 0.05, "layer": 2}


def test_an_effective_depth_is_told_with_what_it_is_behind() -> None:
    depth = EffectiveDepth(0.01, 4, best=5, behind=0.004, low=-0.0031, high=0.011)
    written = record(effective_depth=depth)
    assert LayerRecord.from_line(written.to_line()) == written
    assert depth.told(6) == "4 of 6 at ε 0.01 (layer 5 is 0.004 better, -0.003 … 0.011)"
    assert replace(depth, low=None, high=None).told(6) == "4 of 6 at ε 0.01 (layer 5 is 0.004 better)"
    assert replace(depth, layer=5).told(6) == "5 of 6 at ε 0.01 (the best)"
    by_interval = replace(depth, epsilon="interval")
    assert by_interval.told(6) == "4 of 6 within its interval (layer 5 is 0.004 better, -0.003 … 0.011)"
    assert LayerRecord.from_line(record(effective_depth=by_interval).to_line()).effective_depth == by_interval
    assert depth.absolute == ""


def test_an_absolute_depth_that_no_layer_reaches_is_none() -> None:
    none = EffectiveDepth(0.01, 2, best=2, behind=0.0, absolute_epsilon=0.05)
    written = record(effective_depth=none)
    assert json.loads(written.to_line())["effective_depth"] == {
        "epsilon": 0.01, "layer": 2, "best": 2, "behind": 0.0, "absolute_epsilon": 0.05,
    }  # fmt: skip
    assert LayerRecord.from_line(written.to_line()) == written
    assert none.absolute == "none at ε 0.05"
    assert replace(none, absolute_layer=2).absolute == "2 at ε 0.05"


def test_a_language_models_record_is_of_tokens_and_has_perplexities() -> None:
    tokens = record(unit="tokens", loss=[math.log(8.5), 800.0])
    assert json.loads(tokens.to_line())["unit"] == "tokens"
    assert LayerRecord.from_line(tokens.to_line()) == tokens
    assert tokens.perplexity == pytest.approx([8.5, math.inf])
    assert (record().perplexity, record(unit="tokens", loss=None).perplexity) == (None, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_lacks_is_null_and_read_as_nan(value: float) -> None:
    written = record(loss=[value, 0.5], similarity={"cka": [[value, 0.5], [0.5, 1.0]]}, mean_saturation_layer=value)
    line = json.loads(written.to_line())
    assert line["loss"] == [None, 0.5]
    assert line["similarity"] == {"cka": [[None, 0.5], [0.5, 1.0]]}
    assert line["mean_saturation_layer"] is None
    read = LayerRecord.from_line(written.to_line())
    assert read.loss is not None
    assert math.isnan(read.loss[0])
    assert read.loss[1] == 0.5
    assert math.isnan(read.similarity["cka"][0][0])
    assert read.mean_saturation_layer is not None
    assert math.isnan(read.mean_saturation_layer)
    assert read.to_line() == written.to_line()


CURVE: dict[str, Any] = {"threshold": [0.0, 0.5, None], "mean_exit_layer": [1.0, 1.5, 2.0], "accuracy": [0.1, 0.7, 0.9]}


def test_an_exit_curve_keeps_its_threshold_of_null() -> None:
    written = record(exit_curve=CURVE, exit_curve_area=0.6)
    line = json.loads(written.to_line())
    assert (line["exit_curve"], line["exit_curve_area"]) == (CURVE, 0.6)
    assert LayerRecord.from_line(written.to_line()) == written


def test_an_option_that_is_null_stays_null() -> None:
    written = record(options={"cka": {"batch": None}})
    assert LayerRecord.from_line(written.to_line()).options == {"cka": {"batch": None}}


def test_unknown_keys_are_passed_over() -> None:
    line = json.loads(record().to_line()) | {"of_a_later_version": 1}
    assert LayerRecord.from_line(json.dumps(line)) == record()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accuracy": [0.1]}, r"^accuracy: expected 2 numbers, got 1 of type float64\.$"),
        ({"f1": [0.1, 0.2, 0.3]}, "f1: expected 2 numbers, got 3"),
        ({"loss": ["0.1", "0.2"]}, r"^loss: expected 2 numbers, got 2 of type <U3\.$"),
        ({"saturation": [1, 2, 3]}, r"^saturation: expected 2 whole numbers, 0 or more, got 3 of type int64\.$"),
        ({"saturation": [0.5, 0.5]}, "saturation: expected 2 whole numbers"),
        ({"saturation": [-1, 2]}, "saturation: expected 2 whole numbers, 0 or more"),
        ({"similarity": {"cka": [[1.0, 0.0]]}}, r"similarity\.cka: expected 2 × 2 numbers, got 1 × 2 of type float64"),
        ({"similarity": {"cka": [[1.0], [0.0, 1.0]]}}, r"similarity\.cka: .*got rows of different lengths"),
        ({"saturated_early": True}, "saturated_early: expected one number, got True"),
        ({"exit_curve": CURVE | {"accuracy": [0.1]}}, r"exit_curve\.accuracy: expected 3 numbers, got 1"),
        ({"exit_curve": {"threshold": [0.5]}}, "exit_curve: .*; mean_exit_layer, accuracy absent"),
        ({"exit_curve": CURVE | {"threshold": 0.5}}, r"exit_curve\.threshold: expected a list .*, got 0\.5"),
        (
            {"exit_curve": CURVE | {"threshold": ["0", 1.0, None]}},
            r"exit_curve\.threshold: expected one number, got '0'",
        ),
        (
            {"similarity_interval": {"cka": {"low": [[0, 0], [0, 0]]}}},
            r"similarity_interval\.cka\.high: expected 2 × 2",
        ),
        (
            {"similarity_interval": {"cka": {"low": [[0, 0], [0, 0]], "high": [[0, 0], [0, 0]]}}},
            r"similarity_interval\.cka\.confidence: expected one number, got None",
        ),
        ({"similarity_to_epoch": {"cka": {"4": [1.0]}}}, r"similarity_to_epoch\.cka\.4: expected 2 numbers, got 1"),
        ({"stage": "fit"}, "stage: expected one of validate, test, got 'fit'"),
        ({"unit": "words"}, "unit: expected samples or tokens, got 'words'"),
        ({"layers": 0}, "layers: expected 1 or more, got 0"),
        ({"samples": 0}, "samples: expected 1 or more, got 0"),
        ({"epoch": 1.5}, "epoch: expected one whole number, 0 or more, got 1.5"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        record(**changes)
    path = tmp_path / "layers.jsonl"
    path.write_text(record().to_line() + "\n" + json.dumps(json.loads(record().to_line()) | changes) + "\n")
    with pytest.raises(UserError, match=r"layers\.jsonl, line 2: " + message.removeprefix("^")):
        read_records(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no JSON"),
        ('{"epoch": 3', "no JSON"),
        ("[1, 2]", r"expected a JSON object, got \[1, 2\]"),
        ("{}", "expected the keys epoch, step, stage, layers, samples; epoch, step, stage, layers, samples absent"),
        (bare().to_line().replace('"step": 0', '"step": NaN'), "NaN is written as null"),
        (bare().to_line()[:-1] + ', "similarity": []}', r"similarity: expected a JSON object, got \[\]"),
        (
            bare().to_line()[:-1] + ', "effective_depth": {"layer": 1}}',
            "effective_depth: expected the keys epsilon and layer",
        ),
        (
            bare().to_line()[:-1] + ', "effective_depth": {}}',
            "effective_depth: expected the keys epsilon and layer, got {}",
        ),
    ],
)
def test_a_broken_line_before_the_last_is_refused_by_its_number(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "layers.jsonl"
    path.write_text("\n".join([bare().to_line(), line, bare().to_line(), ""]))
    with pytest.raises(UserError, match=rf"layers\.jsonl, line 2: .*{message}"):
        read_records(path)


def test_append_then_read(tmp_path: Path) -> None:
    path = tmp_path / "run" / "layers.jsonl"
    written = [record(epoch=epoch) for epoch in range(3)]
    for one in written:
        append_record(path, one)
    assert read_records(path) == written
    assert path.read_bytes().count(b"\n") == 3
    assert path.read_bytes().endswith(b"}\n")


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


def test_only_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "layers.jsonl"
    path.write_text('{"epo')
    with pytest.warns(UserWarning, match="left out"):
        assert read_records(path) == []


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected the records of a run in .*absent\.jsonl.*No such file"):
        read_records(tmp_path / "absent.jsonl")


def test_fields_are_the_keys() -> None:
    exits = ["effective_depth", "f1", "exit_curve", "exit_curve_area"]
    similarity = ["similarity_interval", "similarity_to_epoch", "progression"]
    assert [*asdict(record())] == [*DESIGN_KEYS[:5], "unit", *DESIGN_KEYS[5:-2], *exits, *DESIGN_KEYS[-2:], *similarity]


def test_report_starts_without_torch() -> None:
    heavy = ("torch", "lightning", "matplotlib.pyplot")
    code = f"import sys, layersim.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
