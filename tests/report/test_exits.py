import json
import math
from pathlib import Path
from typing import Any

import pytest

from layersim.errors import UserError
from layersim.report.exits import ExitReport

KEYS = [
    "policy", "threshold", "temperatures", "calibration", "layers", "samples", "mean_exit_layer", "layer_gain", "exits",
    "accuracy",
    "full_accuracy", "loss", "full_loss", "promise",
    "choices", "shift", "curve", "speed", "batch_size", "device", "oracle", "parameters",
    "plan", "head", "objective", "weights", "tokenizer", "precision",
]  # fmt: skip


def speed(threshold: float | None = 0.75, **changes: Any) -> dict[str, Any]:
    timed = {"threshold": threshold, "mean_exit_layer": 1.25, "accuracy": 0.875, "layer_gain": 1.6, "wall_gain": 1.5}
    return timed | {"seconds": 0.002, "full_seconds": 0.003} | changes


def choice(**changes: Any) -> dict[str, Any]:
    reference = {"samples": 80, "ranks": [2, 79], "doubt": [0.1, 0.9], "depth": [0.1, 1.5]}
    chosen = {"target": 0.05, "threshold": 0.75, "observed_risk": 0.025, "bound": 0.049, "mean_exit_layer": 1.25}
    return chosen | {"layer_gain": 1.6, "accuracy": 0.875, "reference": reference} | changes


def report(**changes: Any) -> ExitReport:
    values: dict[str, Any] = {
        "policy": "confidence",
        "threshold": 0.75,
        "temperatures": [1.5, 0.5],
        "calibration": {
            "before": {"error": [0.25, 0.125], "brier": [1.0, 0.5], "overconfidence": [0.25, -0.0625]},
            "after": {"error": [0.0625, 0.125], "brier": [0.75, 0.5], "overconfidence": [0.0625, 0.0]},
        },
        "layers": 2,
        "samples": 80,
        "mean_exit_layer": 1.25,
        "layer_gain": 1.6,
        "exits": [60, 20],
        "accuracy": 0.875,
        "full_accuracy": 0.9,
        "loss": 0.5,
        "full_loss": 0.25,
        "promise": {
            "method": "ltt",
            "risk": "error",
            "target": 0.05,
            "confidence": 0.95,
            "observed_risk": 0.025,
            "bound": 0.049,
        },
        "choices": [choice()],
        "shift": None,
        "curve": {
            "threshold": [0.1, 0.75, None],
            "mean_exit_layer": [1.0, 1.25, 2.0],
            "accuracy": [0.5, 0.875, 0.9],
            "mean_exit_layer_interval": [[1.0, 1.0], [1.125, 1.375], [2.0, 2.0]],
            "accuracy_interval": [[0.375, 0.625], [0.8, 0.9375], [0.825, 0.9625]],
        },
        "speed": [speed(), speed(None, mean_exit_layer=2.0, layer_gain=1.0, wall_gain=0.9)],
        "batch_size": 64,
        "device": "cpu",
        "oracle": {"mean_exit_layer": 1.125, "layer_gain": 2 / 1.125},
        "parameters": {"model": 12345, "head": 170, "separate_heads": 12515, "share_saved": 170 / 12515},
        "head": "SharedHead",
        "objective": "Aligned",
        "weights": "0123456789abcdef",
        "tokenizer": None,
        "plan": None,
        "precision": "32-true",
    }
    return ExitReport(**(values | changes))


def test_the_file_has_a_line_for_each_key_in_their_order(tmp_path: Path) -> None:
    path = report().write(tmp_path)
    assert path == tmp_path / "exits.json"
    written = json.loads(path.read_text())
    assert list(written) == KEYS
    assert len(path.read_text().splitlines()) == len(KEYS) + 2
    assert written["promise"]["risk"] == "error"
    assert written["curve"]["threshold"] == [0.1, 0.75, None]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"threshold": None, "temperatures": None, "promise": None, "speed": [], "batch_size": None}
        | {"choices": [choice(target=None, observed_risk=None, bound=None)]},
        {"promise": {**(report().promise or {}), "method": "crc", "confidence": None}},
        {"shift": {"effective_samples": 30.5, "greatest": 4.5, "new_samples": 50, "told_apart": 0.75}},
    ],
)
def test_round_trip(changes: dict[str, Any], tmp_path: Path) -> None:
    report(**changes).write(tmp_path)
    assert ExitReport.read(tmp_path) == report(**changes)


def test_a_loss_without_value_is_null_and_read_as_nan(tmp_path: Path) -> None:
    path = report(loss=math.inf).write(tmp_path)
    assert json.loads(path.read_text())["loss"] is None
    read = ExitReport.read(tmp_path)
    assert read is not None
    assert math.isnan(read.loss)
    assert read.full_loss == 0.25


def test_a_run_without_the_file_has_no_report(tmp_path: Path) -> None:
    assert ExitReport.read(tmp_path) is None


def test_unknown_keys_are_passed_over(tmp_path: Path) -> None:
    path = report().write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"of_a_later_version": 1}))
    assert ExitReport.read(tmp_path) == report()


@pytest.mark.parametrize(
    ("speeds", "gain"), [([speed(0.5), speed(0.75, wall_gain=1.25)], 1.25), ([speed(0.5)], None), ([], None)]
)
def test_the_wall_gain_is_that_of_the_threshold(speeds: list[dict[str, Any]], gain: float | None) -> None:
    assert report(speed=speeds).wall_gain == gain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exits": [1, 2, 3]}, r"exits: expected 2 whole numbers, 0 or more, got 3 of type int64"),
        ({"accuracy": "0.9"}, "accuracy: expected one number, got '0.9'"),
        ({"policy": None}, "policy: expected a name, got None"),
        ({"tokenizer": 3}, "tokenizer: expected a name, got 3"),
        ({"plan": {"asked": 0.9}}, "plan: "),
        ({"temperatures": [1.0]}, "temperatures: expected 2 numbers, got 1"),
        ({"calibration": {"before": {}}}, "calibration: .*; after absent"),
        (
            {"calibration": report().calibration | {"after": {"error": [1.0], "brier": [], "overconfidence": []}}},
            r"calibration\.after\.error: expected 2 numbers, got 1",
        ),
        ({"threshold": "high"}, "threshold: expected one number, got 'high'"),
        (
            {"promise": {"method": "ltt"}},
            "promise: .*; risk, confidence, target, observed_risk, bound absent",
        ),
        ({"promise": []}, r"promise: expected a JSON object, got \[\]"),
        ({"choices": []}, r"choices: expected a list, got \[\]"),
        ({"choices": [choice(bound=None)]}, r"choices\[0\]\.bound: expected one number, got None"),
        ({"choices": [choice(), choice(threshold="a")]}, r"choices\[1\]\.threshold: expected one number, got 'a'"),
        ({"choices": [choice(reference=None)]}, r"choices\[0\]\.reference: expected a JSON object, got None"),
        (
            {"choices": [choice(reference={"samples": 9, "ranks": [1], "doubt": [], "depth": [0.1]})]},
            r"choices\[0\]\.reference\.doubt: expected 1 numbers, got 0",
        ),
        ({"shift": {"told_apart": 0.5}}, "shift: .*; effective_samples, greatest, new_samples absent"),
        ({"curve": None}, "curve: expected a JSON object, got None"),
        ({"curve": report().curve | {"accuracy": [1.0]}}, r"curve\.accuracy: expected 3 numbers, got 1"),
        ({"curve": report().curve | {"accuracy_interval": [[0, 1]]}}, r"curve\.accuracy_interval: expected 3 × 2 numb"),
        ({"speed": None}, "speed: expected a list, got None"),
        ({"speed": [speed(), {}]}, r"speed\[1\]: .*; threshold, mean_exit_layer, .* absent"),
        ({"parameters": {"model": 1}}, "parameters: .*; head, separate_heads, share_saved absent"),
        ({"oracle": {}}, "oracle: .*; mean_exit_layer, layer_gain absent"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        report(**changes)
    path = report().write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=r"exits\.json is damaged; run `layersim exits` again\. " + message):
        ExitReport.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accuracy": None}, "accuracy: expected one number, got None"),
        ({"speed": [speed(wall_gain=None)]}, r"speed\[0\]\.wall_gain: expected one number, got None"),
    ],
)
def test_no_number_is_refused_where_a_report_is_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        report(**changes)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = report().write(tmp_path).read_text()
    for text, message in (
        (whole[: len(whole) // 2], "is damaged"),
        ("[1]", r"expected a JSON object, got \[1\]"),
        ("{}", "policy, threshold, temperatures, .* absent"),
    ):
        (tmp_path / "exits.json").write_text(text)
        with pytest.raises(UserError, match=message):
            ExitReport.read(tmp_path)
    (tmp_path / "exits.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match="is damaged"):
        ExitReport.read(tmp_path)


def test_a_choice_by_its_target() -> None:
    several = report(choices=[choice(), choice(target=0.1, threshold=None)])
    assert several.choice() == several.choice(0.05) == choice()
    assert several.choice(0.1)["threshold"] is None
    with pytest.raises(UserError, match=r"Expected a risk that was promised \(0\.05, 0\.1\), but got 0\.07"):
        several.choice(0.07)
    with pytest.raises(UserError, match=r"promised \(none\)"):
        report(promise=None, choices=[choice(target=None)]).choice(0.05)
