"""`layersim dashboard`: what would be sent to W&B."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from callbacks.loggers import logged
from layersim.__main__ import main
from layersim.report.quantity import curve

pytest.importorskip("wandb_workspaces")


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("dashboard") / "dashboard.json"
    assert main(["dashboard", "team/layers", f"--dry-run={path}"]) == 0
    return json.loads(path.read_text())


def panels_below(node: Any) -> list[dict[str, Any]]:
    """Every panel in a nest of lists and dictionaries."""
    if isinstance(node, dict):
        here = [node] if "viewType" in node and "config" in node else []
        return here + [panel for value in node.values() for panel in panels_below(value)]
    return [panel for value in node for panel in panels_below(value)] if isinstance(node, list) else []


def lines(panels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]


@pytest.mark.parametrize("part", ["workspace", "report"])
def test_both_belong_to_the_project_and_draw_against_the_epoch(sent: dict[str, Any], part: str) -> None:
    text = json.dumps(sent[part])
    assert '"team"' in text
    assert '"layers"' in text
    plots = lines(panels_below(sent[part]))
    assert {plot["xAxis"] for plot in plots} == {"epoch"}
    assert ["val/accuracy"] in [plot["metrics"] for plot in plots]


@pytest.mark.parametrize("part", ["workspace", "report"])
def test_the_patterns_catch_what_the_monitors_log_and_nothing_else(sent: dict[str, Any], part: str) -> None:
    patterns = [plot["metricRegex"] for plot in lines(panels_below(sent[part])) if plot.get("metricRegex")]
    names = [f"val/{name}" for name, _ in logged({"accuracy": curve([0.0] * 12)})]
    assert len(names) == 12
    caught = [name for pattern in patterns for name in names if re.search(pattern, name)]
    assert caught == names
    assert not [pattern for pattern in patterns if re.search(pattern, "val/accuracy")]


def test_heat_maps_stand_side_by_side(sent: dict[str, Any]) -> None:
    browsers = [panel["config"] for panel in panels_below(sent["workspace"]) if panel["viewType"] == "Media Browser"]
    assert browsers[0]["mediaKeys"] == ["val/cosine", "val/cka"]
    assert browsers[0]["columnCount"] == 2


def test_sweeps_show_what_mattered(sent: dict[str, Any]) -> None:
    panels = {panel["viewType"]: panel["config"] for panel in panels_below(sent["workspace"])}
    assert panels["Parameter Importance"]["targetKey"] == "val/accuracy"
    columns = [column["accessor"] for column in panels["Parallel Coordinates Plot"]["columns"]]
    assert columns[0] == "config:model.objective.class_path.value"  # a flat key, not a nest of sections
    assert columns[-2:] == ["config:model.optimizer.init_args.lr.value", "summary:val/accuracy"]


def test_the_reports_runs_are_grouped_by_objective(sent: dict[str, Any]) -> None:
    text = json.dumps(sent["report"])
    assert "model.objective.class_path.value" in text
    assert "model.value" not in text


@pytest.mark.parametrize("project", ["layers", "team/", "/layers", "a/b/c"])
def test_what_is_no_project_is_refused(project: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", project, f"--dry-run={tmp_path / 'x.json'}"]) == 2
    assert "expected ENTITY/PROJECT" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", "team/layers", f"--dry-run={tmp_path / 'missing/x.json'}"]) == 2
    assert re.search(r"missing/x\.json cannot be written: .*Change --dry-run", capsys.readouterr().err)
