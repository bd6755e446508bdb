"""Sweeps without a server: W&B's engine draws, the same command line runs, a ledger remembers."""

import io
import json
import math
import os
import subprocess
import sys
import sysconfig
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from layersim.__main__ import main
from layersim.commands.sweep import trials_table
from layersim.errors import UserError
from layersim.sweep.driver import Driver, installed_command, metric_history
from layersim.sweep.engine import Engine
from layersim.sweep.file import read
from layersim.sweep.ledger import Ledger, Trial
from tests import tiny
from tests.measured import measured

pytest.importorskip("sweeps", reason="the extra `sweep` is not installed")

PROGRAM = """
import pathlib, sys, time
flags = dict(word[2:].split("=", 1) for word in sys.argv[2:])
run = pathlib.Path(flags["trainer.default_root_dir"], flags["experiment"], "run" + str(time.time_ns()))
run.mkdir(parents=True)
x = float(flags["x"])
if x < 0:
    sys.exit("x is negative")
rows = ["epoch,val/accuracy"]
for epoch in range(4):
    rows.append(f"{epoch},{x}\\n{epoch},")  # a row without the metric, as a training step leaves
    (run / "metrics.csv").write_text("\\n".join(rows))
    if epoch == 2 and x < 0.5:
        time.sleep(3600)  # far longer than the driver needs to see that it is behind
"""


def sweep(folder: Path, **config: Any) -> Path:
    path = folder / "tiny.yaml"
    whole = {
        "method": "grid",
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "parameters": {"x": {"values": [0.6, -1.0, 0.9]}},
        "command": ["${program}", "fit", "${args}"],
    }
    path.write_text(yaml.safe_dump(whole | config))
    return path


def script(folder: Path, source: str) -> Path:
    path = folder / "program.py"
    path.write_text(source)
    return path


def driver(path: Path) -> Driver:
    """A driver of a program that stands in for a training, in milliseconds."""
    return Driver(read(path), path.parent / "runs", script(path.parent, PROGRAM))


def test_the_table_has_the_best_first() -> None:
    trials = [
        Trial(1, {"model.lr": 0.1, "model.weights": "last"}, "finished", [0.2, 0.5]),
        Trial(2, {"model.lr": 0.2, "model.weights": "linear"}, "failed"),
        Trial(3, {"model.lr": 0.3, "model.weights": "uniform"}, "stopped", [0.75]),
    ]
    for maximize, order in ((True, ["3", "1", "2"]), (False, ["1", "3", "2"])):
        console = Console(record=True, width=100, file=io.StringIO())
        console.print(trials_table(trials, "val/accuracy", maximize=maximize))
        rows = [line.split() for line in console.export_text().splitlines() if line.strip()]
        assert rows[0] == ["trial", "lr", "weights", "val/accuracy", "state"]
        assert [row[0] for row in rows[2:]] == order
    assert ["2", "0.2", "linear", "failed"] in rows
    for maximize in (True, False):
        console = Console(record=True, width=100, file=io.StringIO())
        undefined = Trial(4, {"model.lr": 0.4, "model.weights": "last"}, "finished", [0.9, math.nan])
        console.print(trials_table([undefined, *trials], "val/accuracy", maximize=maximize))
        assert [line.split()[0] for line in console.export_text().splitlines()[3:] if line.strip()][2:] == ["4", "2"]
    assert ["1", "0.1", "last", "0.5", "finished"] in rows


def test_the_table_keeps_long_values_whole() -> None:
    recipe = f"experiments/paper/objectives/{'z' * 40}.yaml"
    console = Console(record=True, width=60, file=io.StringIO())
    console.print(trials_table([Trial(1, {"config": recipe}, "finished", [0.5])], "val/accuracy", maximize=True))
    assert console.export_text().count("z") == 40


def test_a_grid_runs_each_trial_once_and_goes_on_after_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = driver(sweep(tmp_path))
    first.run(2)
    assert [(trial.values["x"], trial.state) for trial in first.ledger.trials] == [(0.6, "finished"), (-1, "failed")]
    assert "failed: x is negative" in capsys.readouterr().out
    second = driver(sweep(tmp_path))  # another program, later
    second.run(None)
    states = [(trial.values["x"], trial.state) for trial in second.ledger.trials]
    assert states == [(0.6, "finished"), (-1, "failed"), (0.9, "finished")]
    best = second.best()
    assert best is not None
    assert (best.trial, best.history) == (3, [0.9] * 4)
    assert Path(best.directory or "").parent == tmp_path / "runs/sweeps/tiny/trial-003"


@pytest.mark.parametrize(
    ("goal", "target", "trials"), [("maximize", 0.8, 2), ("minimize", 0.7, 1), ("maximize", 0.95, 3)]
)
def test_a_sweep_ends_where_a_trial_reaches_the_target(
    goal: str, target: float, trials: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = {"name": "val/accuracy", "goal": goal, "target": target}
    ending = driver(sweep(tmp_path, metric=metric, parameters={"x": {"values": [0.6, 0.9, 0.7]}}))
    ending.run(None)
    assert len(ending.ledger.trials) == trials
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == ("All trials have been run." if trials == 3 else "The target is reached.")


def test_a_trial_has_what_stands_before_the_program_in_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_HERE", "there")
    command = ["${env}", "CUDA_VISIBLE_DEVICES=1", "A=b=c", "${program}", "fit", "--y=${envvar:OF_HERE}", "${args}"]
    told = "[os.environ['CUDA_VISIBLE_DEVICES'], os.environ['A'], flags['y']]"
    program = f"{PROGRAM}\nimport os\n(run / 'told').write_text(' '.join({told}))"
    path = sweep(tmp_path, command=command, parameters={"x": {"value": 0.9}})
    Driver(read(path), tmp_path / "runs", script(tmp_path, program)).run(1)
    (found,) = tmp_path.glob("runs/sweeps/tiny/trial-001/run*/told")
    assert found.read_text() == "1 b=c there"


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_a_trial_that_ended_without_a_number_is_never_the_best(goal: str, tmp_path: Path) -> None:
    ended = driver(sweep(tmp_path, metric={"name": "val/accuracy", "goal": goal}))
    ended.ledger.write(Trial(1, {"x": 0.6}, "finished", [0.9, math.nan]))
    assert ended.best() is None
    for trial, value in enumerate([0.5, 0.7], start=2):
        ended.ledger.write(Trial(trial, {"x": 0.9}, "finished", [value]))
    best = ended.best()
    assert best is not None
    assert best.history == [0.7 if goal == "maximize" else 0.5]


def test_only_who_holds_a_ledger_cuts_it_and_knows_what_others_did(tmp_path: Path) -> None:
    path, config = tmp_path / "ledger.jsonl", {"method": "grid"}
    first, second = Ledger(path, config), Ledger(path, config)
    first.write(Trial(1, {"x": 0.7}, "finished", [0.7]))
    whole = path.read_text()
    with path.open("a") as file:
        file.write('{"trial": 2, "val')  # another program is in the middle of a line
    assert len(Ledger(path, config).trials) == 1
    assert path.read_text() == whole + '{"trial": 2, "val'
    assert second.trials == []
    with second.held():
        assert second.trials == first.trials
        assert path.read_text() == whole


def test_an_interrupted_trial_is_started_again_with_its_values(tmp_path: Path) -> None:
    path = sweep(tmp_path)
    ledger = Ledger(tmp_path / "runs/sweeps/tiny/ledger.jsonl", read(path).config)
    ledger.write(Trial(1, {"x": 0.7}, "running"))
    with ledger.path.open("a") as file:
        file.write('{"trial": 1, "values": {"x"')  # cut off in the middle of a line
    again = driver(path)
    again.run(1)
    (trial,) = again.ledger.trials
    assert (trial.values, trial.state, trial.history) == ({"x": 0.7}, "finished", [0.7] * 4)
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert [line.get("state") for line in lines] == [None, "running", "running", "finished"]


def test_hyperband_stops_a_trial_that_is_behind(tmp_path: Path) -> None:
    hyperband = {"type": "hyperband", "min_iter": 1, "eta": 2}
    values = {"x": {"values": [0.6, 0.9, 0.1]}}
    stopping = driver(sweep(tmp_path, parameters=values, early_terminate=hyperband))
    stopping.run(None)
    *others, last = stopping.ledger.trials
    assert [trial.state for trial in others] == ["finished", "finished"]
    assert last.state == "stopped"
    assert 2 <= len(last.history) < 4, "before its end"


def test_a_changed_sweep_does_not_go_on_in_the_old_ledger(tmp_path: Path) -> None:
    driver(sweep(tmp_path)).run(1)
    with pytest.raises(ValueError, match="written differently"):
        driver(sweep(tmp_path, parameters={"x": {"values": [1]}}))


def test_a_metric_that_nobody_logs_is_told_after_the_first_trial(tmp_path: Path) -> None:
    wrong = driver(sweep(tmp_path, metric={"name": "val/acuracy"}))
    with pytest.raises(ValueError, match="logged no 'val/acuracy'"):
        wrong.run(None)


def test_a_metric_that_is_no_number_is_told_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,val/accuracy\n0,0.5\n0,\n1,nan\n2,0.7")
    first, second = metric_history(path, "val/accuracy")
    assert first == 0.5
    assert math.isnan(second), "the line that is half written is left for later"
    for damaged in (b"epoch,val/accuracy\n0,0.5\n1,0.5.7\n", b"epoch,val/accuracy\n0,0.5\n1,\xff\n"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"^The values of val/accuracy in {path} cannot be read: .*(0\.5\.7|0xff)"):
            metric_history(path, "val/accuracy")


def test_the_engine_draws_again_what_it_drew(tmp_path: Path) -> None:
    config = {
        "method": "bayes",
        "metric": {"name": "m", "goal": "maximize"},
        "parameters": {
            "rate": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1},
            "n": {"min": 1, "max": 9},
        },
    }

    def drawn() -> list[dict[str, Any]]:
        trials: list[Trial] = []
        for number in range(1, 9):
            values = Engine(config).suggest(trials)
            assert values is not None
            trials.append(Trial(number, values, "finished", [-abs(values["n"] - 7)]))
        return [trial.values for trial in trials]

    first = drawn()
    assert first == drawn()
    assert all(0.001 <= values["rate"] <= 0.1 and values["n"] in range(1, 10) for values in first)
    assert len({values["rate"] for values in first}) == 8
    with pytest.raises(ValueError, match="W&B's engine refuses"):
        Engine(config | {"parameters": {"n": {"distribution": "unifrom", "min": 1}}})


def test_a_real_trial_is_a_run_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Although a module of the user's has the name of a package of ours, and comes first."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "callbacks.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "recipe.yaml").write_text("experiment: theirs\ntrainer: {default_root_dir: '2024.0'}\n")
    path = sweep(
        tmp_path,
        method="random",
        parameters={
            "config": {"values": ["recipe.yaml"]},
            "model.optimizer.init_args.lr": {"distribution": "uniform", "min": 0.001, "max": 0.01},
        },
        command=["${program}", "fit", *tiny.FLAGS, "--model.optimizer=AdamW", "${args}"],
    )
    assert main(["sweep", str(path)]) == 2
    assert "Say --count N" in capsys.readouterr().err
    assert main(["sweep", str(path), "--count", "-1"]) == 2
    assert "count must be at least 1, got -1: change --count" in capsys.readouterr().err
    assert main(["sweep", str(path), "--count", "1"]) == 0
    (directory,) = tmp_path.glob("2024.0/sweeps/tiny/trial-001/*/")
    config = yaml.safe_load((directory / "config.yaml").read_text())
    ledger = Ledger(tmp_path / "2024.0/sweeps/tiny/ledger.jsonl", read(path).config)
    (trial,) = ledger.trials
    assert config["model"]["optimizer"]["init_args"]["lr"] == trial.values["model.optimizer.init_args.lr"]
    (record,) = measured(directory)
    assert trial.history == [pytest.approx(record["accuracy"][-1])]
    assert "Best so far, trial 1" in capsys.readouterr().out


def test_what_trials_share_asks_for_no_gpu() -> None:
    """Which a fork could not use; whether there is one is not asked either."""
    program = """
import torch
asked = []
for name in ("is_available", "device_count", "_lazy_init"):
    setattr(torch.cuda, name, lambda *_, name=name: asked.append(name))
from layersim.commands.default_callbacks import import_for_trials
import_for_trials()
assert not asked, asked
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_trials_are_started_by_the_installed_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_command().name == "layersim"
    monkeypatch.setattr(sysconfig, "get_path", lambda *args: str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path}/layersim is not there: pip install layersim"):
        Driver(read(sweep(tmp_path)), tmp_path / "runs")
    (tmp_path / "layersim").touch()
    assert installed_command() == tmp_path / "layersim"


def test_a_ledger_whose_first_line_was_cut_off_begins_anew(tmp_path: Path) -> None:
    path = sweep(tmp_path, parameters={"x": {"values": [1.0]}})
    (ledger := driver(path).ledger).path.parent.mkdir(parents=True)
    ledger.path.write_text('{"sweep": {"meth')
    driver(path).run(None)
    assert [trial.state for trial in driver(path).ledger.trials] == ["finished"]
    with ledger.path.open("rb") as file:
        whole = file.read()
    for length in range(len(whole)):  # killed at any instant
        ledger.path.write_bytes(whole[:length])
        again = driver(path).ledger
        with again.held():
            again.write(Trial(1, {"x": 1.0}, "failed"))
        assert [trial.state for trial in driver(path).ledger.trials] == ["failed"]


def test_a_trial_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "runs/ledger.jsonl"
    with pytest.raises(TypeError, match="date is not JSON"):
        Ledger(path, {"method": "grid"}).write(Trial(1, {"x": date(2024, 1, 1)}, "running"))
    assert list(tmp_path.iterdir()) == []
