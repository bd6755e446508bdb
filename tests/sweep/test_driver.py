"""Sweeps without a server: W&B's engine draws, the same command line runs, a ledger remembers."""

import contextlib
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import yaml
from rich.console import Console

from layersim.__main__ import main
from layersim.commands.sweep import trials_table
from layersim.errors import UserError
from layersim.sweep import driver as driving
from layersim.sweep.driver import Driver, installed_command
from layersim.sweep.engine import Engine
from layersim.sweep.file import read
from layersim.sweep.ledger import Ledger, Trial
from tests import tiny
from tests.measured import measured
from tests.reliability.children import Child

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


def driver(path: Path) -> Driver:
    """A driver of a program that stands in for a training, in milliseconds."""
    return Driver(read(path), path.parent / "runs", program=(sys.executable, "-c", PROGRAM))


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


class Grid:
    """In place of W&B's engine, whose import takes seconds in each process."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.values = config["parameters"]["x"]["values"]

    def suggest(self, trials: Sequence[Trial]) -> dict[str, Any] | None:
        return {"x": self.values[len(trials)]} if len(trials) < len(self.values) else None

    def stops(self, *_: object) -> bool:
        return False


def drive(
    path: Path, root: Path, program: str, number: int, disposition: signal.Handlers, warm_up: str | None = None
) -> None:
    """A driver in a process of its own, started with a signal's disposition; status 2 where another one is at work."""
    signal.signal(number, disposition)
    driving.Engine = Grid  # type: ignore[assignment,misc]
    try:
        Driver(read(path), root, (program,) if warm_up else (sys.executable, "-c", program), warm_up).run(None)
    except UserError:
        sys.exit(2)


@contextlib.contextmanager
def driven(folder: Path, number: signal.Signals, disposition: signal.Handlers) -> Iterator[tuple[Child, int]]:
    """A driver that was started with the signal's disposition, whatever it is here (nohup has it ignored), and its
    trial's process id; neither outlives the block."""
    told = folder / "pid"
    trial = f"import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(3600)"
    child = Child(folder / "output", drive, sweep(folder), folder / "runs", trial, number, disposition)
    try:
        assert child.wait_for(lambda: told.exists() and bool(told.read_text()))
        yield child, int(told.read_text())
    finally:
        child.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_driver_ends_its_trial_too(number: signal.Signals, tmp_path: Path) -> None:
    with driven(tmp_path, number, signal.SIG_DFL) as (child, trial):
        os.kill(child.pid, number)
        assert child.wait() == 128 + number
        with pytest.raises(ProcessLookupError):
            os.kill(trial, 0)
        ledger = Ledger(tmp_path / "runs/sweeps/tiny/ledger.jsonl", read(tmp_path / "tiny.yaml").config)
        assert [one.state for one in ledger.trials] == ["running"], "and will be started again"


def test_a_driver_that_was_told_to_ignore_a_hangup_goes_on(tmp_path: Path) -> None:
    with driven(tmp_path, signal.SIGHUP, signal.SIG_IGN) as (child, trial):
        os.kill(child.pid, signal.SIGHUP)
        os.kill(child.pid, signal.SIGTERM)  # is what ends it, and its trial
        assert child.wait() == 128 + signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            os.kill(trial, 0)


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
    (tmp_path / "recipe.yaml").write_text("experiment: theirs\ntrainer: {default_root_dir: theirs}\n")
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
    assert main(["sweep", str(path), "--count", "1"]) == 0
    (directory,) = tmp_path.glob("theirs/sweeps/tiny/trial-001/*/")
    config = yaml.safe_load((directory / "config.yaml").read_text())
    ledger = Ledger(tmp_path / "theirs/sweeps/tiny/ledger.jsonl", read(path).config)
    (trial,) = ledger.trials
    assert config["model"]["optimizer"]["init_args"]["lr"] == trial.values["model.optimizer.init_args.lr"]
    (record,) = measured(directory)
    assert trial.history == [pytest.approx(record["accuracy"][-1])]
    assert "Best so far, trial 1" in capsys.readouterr().out


FORKED = """
import os, sys, time, warm, own
flags = dict(word[2:].split("=", 1) for word in sys.argv[2:])
print(warm.since, own.process, os.getpid(), os.getcwd(), os.environ.get("WANDB_RUN_ID"), *sys.argv[:2], flush=True)
assert __name__ == "__main__"
assert os.getsid(0) == os.getpid()
assert not sys.stdin.read()
if float(flags["x"]) < 0:
    sys.exit("x is negative")
if float(flags["x"]) > 1:
    time.sleep(3600)
os.makedirs(run := os.path.join(flags["trainer.default_root_dir"], flags["experiment"], "run"))
with open(os.path.join(run, "metrics.csv"), "w") as file:
    file.write("val/accuracy\\n" + flags["x"] + "\\n")
"""


@pytest.fixture
def forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that stands in for the command, a module that is imported once for all trials, and one for each."""
    (tmp_path / "warm.py").write_text("import time\nsince = time.monotonic()\ndef up(): ...\n")
    (tmp_path / "own.py").write_text("import os\nprocess = os.getpid()\n")
    (tmp_path / "program.py").write_text(FORKED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("WANDB_RUN_ID", "an agent's")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "program.py"


def test_trials_share_imports_and_nothing_else(forked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = forked.parent
    first = Driver(read(sweep(home)), home / "runs", (str(forked),), "warm:up")
    first.run(None)
    assert [trial.state for trial in first.ledger.trials] == ["finished", "failed", "finished"]
    assert "failed: x is negative" in capsys.readouterr().out
    said = [path.read_text().splitlines()[0].split() for path in sorted(home.glob("runs/**/output.log"))]
    assert len({since for since, *_ in said}) == 1
    assert len({process for _, process, *_ in said}) == 3
    for _, own, process, folder, agent, *words in said:
        assert own == process
        assert (folder, agent, words) == (str(home), "None", [str(forked), "fit"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_forked_trial_ends_with_the_driver(number: signal.Signals, forked: Path) -> None:
    home = forked.parent
    path = sweep(home, parameters={"x": {"values": [2.0]}})
    told = (path, home / "runs", str(forked), signal.SIGHUP, signal.SIG_DFL, "warm:up")
    environment = {"PYTHONPATH": os.environ["PYTHONPATH"]}
    child = Child(home / "output", drive, *told, where=home, environment=environment)
    output = home / "runs/sweeps/tiny/trial-001/output.log"
    assert child.wait_for(lambda: output.exists() and "\n" in output.read_text())
    trial = int(output.read_text().split()[2])
    os.kill(child.pid, number)
    child.wait()
    end = time.monotonic() + 10
    while is_there(trial) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_there(trial)


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


def test_a_ledger_belongs_to_one_program_at_a_time(tmp_path: Path) -> None:
    path = sweep(tmp_path, parameters={"x": {"values": [1.0]}})
    holder = f"""
import sys
from pathlib import Path
from layersim.sweep.file import read
from layersim.sweep import driver as driving
from layersim.sweep.driver import Driver
driver = Driver(read(Path({str(path)!r})), Path({str(tmp_path / "runs")!r}))
with driver.ledger.held():
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"Another `layersim sweep`.* is running the trials of .*ledger\.jsonl"):
            driver(path).run(1)
        assert driver(path).ledger.trials == []
        process.kill()  # a lock that outlived its program would stop all later ones
    driver(path).run(1)
    assert [trial.state for trial in driver(path).ledger.trials] == ["finished"]


WATCHED = """
import fcntl, os, pathlib, signal, subprocess, sys, time
flags = dict(word[2:].split("=", 1) for word in sys.argv[2:])
place = pathlib.Path(flags["trainer.default_root_dir"], flags["experiment"])
if flags["x"] == "0.9":  # as where a step never ends
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open("log", "a") as log, open(flags["x"], "a") as alone:
    worker = subprocess.Popen(["sleep", "3600"])
    print(os.getpid(), worker.pid, file=log, flush=True)
    try:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("twice", file=log, flush=True)
    (run := place / f"run{time.time_ns()}").mkdir()
    (run / "metrics.csv").write_text(f"val/accuracy\\n{flags['x']}\\n")
    time.sleep(0.5)
    print("ended", flags["x"], file=log)
"""
"""A trial with a process of its own, which tells when there are two of it."""


def watched(folder: Path) -> Child:
    """A driver of such trials."""
    told = (folder / "tiny.yaml", folder / "runs", WATCHED, signal.SIGHUP, signal.SIG_DFL)
    return Child(folder / "output", drive, *told, where=folder)


def is_there(process: int) -> bool:
    """Whether it runs; one that has ended and waits for its parent to look does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_driver_takes_its_trial_with_it_and_a_rerun_trains_none_twice(tmp_path: Path) -> None:
    path, log, draw = (
        sweep(tmp_path, parameters={"x": {"values": [0.6, 0.7, 0.9]}}),
        tmp_path / "log",
        random.Random(18),
    )
    kills = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGHUP, None]
    for number in kills:
        while True:  # what a kill has left is ending: the next driver says so
            before = log.stat().st_size if log.exists() else 0
            child = watched(tmp_path)
            if number is not None and child.wait_for(lambda at=before: log.exists() and log.stat().st_size > at):
                time.sleep(draw.random() * 0.4)
                os.kill(child.pid, number)
            if child.wait() != 2:
                break
            time.sleep(0.1)
        told = log.read_text().split()
        pids = [int(word) for word in told if word.isdecimal()]
        end = time.monotonic() + 10
        while any(map(is_there, pids)) and time.monotonic() < end:
            time.sleep(0.05)
        assert not [pid for pid in pids if is_there(pid)], "an orphan"
    assert "twice" not in told
    ledger = driver(path).ledger
    assert [(trial.values["x"], trial.state) for trial in ledger.trials] == [(x, "finished") for x in (0.6, 0.7, 0.9)]
    assert len(pids) > 6, "some were interrupted"


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


def test_a_trial_whose_guard_is_killed_too_holds_the_ledger(tmp_path: Path) -> None:
    path, log = sweep(tmp_path, parameters={"x": {"values": [0.6]}}), tmp_path / "log"
    child = watched(tmp_path)
    assert child.wait_for(lambda: log.exists() and bool(log.read_text()))
    trial = int(log.read_text().split()[0])
    guarding = int(Path(f"/proc/{trial}/stat").read_text().rpartition(")")[2].split()[1])
    for process in (guarding, child.pid):
        os.kill(process, signal.SIGKILL)
    os.kill(trial, signal.SIGSTOP)
    with pytest.raises(UserError, match="the last trial of one that was killed"):
        driver(path).run(1)
    os.killpg(trial, signal.SIGKILL)
