import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layersim.errors import UserError
from layersim.report.transfer import (
    TransferReport,
    transfer_figure,
    transfer_table,
)
from tests.report.test_figures import channel, points

REPORT = TransferReport(
    model="runs/a",
    layers=2,
    split="val",
    data={"class_path": "layersim.data.Digits"},
    samples=80,
    accuracy=[0.5, 0.875],
    shifts={"noise": [{"strength": s, "accuracy": [0.5 - s / 4, 0.875 - s / 4]} for s in (0.5, 1.0)]},
    probe={
        "data": {},
        "classes": 2,
        "train_samples": 60,
        "samples": 20,
        "penalty": [1.0, 10.0],
        "accuracy": [0.75, 0.8],
    },
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert TransferReport.read(tmp_path) is None
    for report in (REPORT, replace(REPORT, probe=None), replace(REPORT, accuracy=None, shifts={})):
        report.write(tmp_path)
        assert TransferReport.read(tmp_path) == report


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"accuracy": [0.5]}, "accuracy: expected 2 numbers"),
        ({"shifts": {"noise": [{"strength": 1.0, "accuracy": [0.5]}]}}, "shifts.noise[0].accuracy: expected 2 numbers"),
        (
            {"shifts": {"noise": [{"accuracy": [0.5, 0.5]}]}},
            "shifts.noise[0]: expected the keys strength, accuracy; strength absent",
        ),
        ({"shifts": {"noise": 3}}, "shifts.noise: expected a list, got 3"),
        (
            {"probe": {"classes": 2}},
            "probe: expected the keys classes, train_samples, samples, penalty, accuracy, data; train_samples, samples",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        replace(REPORT, **changes)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = REPORT.write(tmp_path)
    for content in ("{", "[]", '{"model": "a"}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"transfer.json is damaged; run `layersim transfer` again"):
            TransferReport.read(tmp_path)


def test_settings_tell_what_compares() -> None:
    """Other accuracies, another model and other loading compare; other strengths, data or samples do not."""
    alike = replace(REPORT, model="runs/b", accuracy=[0.0, 0.0])
    assert (alike.shift_settings, alike.probe_settings) == (REPORT.shift_settings, REPORT.probe_settings)
    section = {"class_path": "layersim.data.Digits", "init_args": {"val_fraction": 0.2}}
    loaded = {**section, "init_args": {"val_fraction": 0.2, "seed": 1, "num_workers": 2}}
    assert replace(REPORT, data=loaded).shift_settings == replace(REPORT, data=section).shift_settings
    assert replace(REPORT, probe=None).shift_settings == REPORT.shift_settings, "a probe is another measurement"
    other_step = {"noise": [{"strength": 0.5, "accuracy": [0.5, 0.5]}]}
    for changes in ({"shifts": other_step}, {"data": section}, {"samples": 81}, {"split": "test"}):
        assert replace(REPORT, **changes).shift_settings != REPORT.shift_settings
    assert REPORT.probe is not None
    for key, value in (("data", section), ("samples", 81), ("train_samples", 7), ("classes", 5)):
        assert replace(REPORT, probe={**REPORT.probe, key: value}).probe_settings != REPORT.probe_settings


def test_table_and_figure() -> None:
    table = transfer_table(REPORT)
    rows = [[*map(str, column.cells)] for column in table.columns]
    assert rows == [["1", "2"], ["0.500", "0.875"], ["0.375", "0.750"], ["0.250", "0.625"], ["0.750", "0.800"]]
    noise, probe = transfer_figure(REPORT)["concat"]
    assert {name: [value for _, value in points(noise, name)] for name in ("as they are", "0.5", "1")} == {
        "as they are": [0.5, 0.875],
        "0.5": [0.375, 0.75],
        "1": [0.25, 0.625],
    }
    assert channel(noise, "line", "color")["scale"]["domain"] == ["as they are", "0.5", "1"]
    assert [value for _, value in points(probe)] == [0.75, 0.8]
