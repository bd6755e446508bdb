"""A sweep's driver and its trials as processes: signals, kills, shared imports, one ledger at a time."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from layersim.errors import UserError
from layersim.sweep import driver as driving
from layersim.sweep.driver import Driver
from layersim.sweep.file import read
from layersim.sweep.ledger import Ledger, Trial
from tests.reliability.children import Child
from tests.sweep.test_driver import driver, script, sweep

pytest.importorskip("sweeps", reason="the extra `sweep` is not installed")


class Grid:
    """In place of W&B's engine, whose import takes seconds in each process."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.values = config["parameters"]["x"]["values"]

    def suggest(self, trials: Sequence[Trial]) -> dict[str, Any] | None:
        return {"x": self.values[len(trials)]} if len(trials) < len(self.values) else None

    def stops(self, *_: object) -> bool:
        return False


def drive(
    path: Path, root: Path, program: Path, number: int, disposition: signal.Handlers, warm_up: str | None = None
) -> None:
    """A driver in a process of its own, started with a signal's disposition; status 2 where another one is at work."""
    signal.signal(number, disposition)
    driving.Engine = Grid  # type: ignore[assignment,misc]
    try:
        Driver(read(path), root, program, warm_up).run(None)
    except UserError:
        sys.exit(2)


@contextlib.contextmanager
def driven(folder: Path, number: signal.Signals, disposition: signal.Handlers) -> Iterator[tuple[Child, int]]:
    """A driver that was started with the signal's disposition, whatever it is here (nohup has it ignored), and its
    trial's process id; neither outlives the block."""
    told = folder / "pid"
    trial = f"import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(3600)"
    program = script(folder, trial)
    child = Child(folder / "output", drive, sweep(folder), folder / "runs", program, number, disposition)
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
    first = Driver(read(sweep(home)), home / "runs", forked, "warm:up")
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
    told = (path, home / "runs", forked, signal.SIGHUP, signal.SIG_DFL, "warm:up")
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


def test_a_guard_whose_driver_is_gone_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "trial.py").write_text("import time\ntime.sleep(3600)")
    trial = {"words": [str(tmp_path / "trial.py")], "output": str(tmp_path / "output.log")}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "layersim.sweep.guard"], stdin=PIPE, stdout=PIPE, stderr=PIPE
    ) as guarding:
        assert guarding.stdin is not None
        assert guarding.stdout is not None
        guarding.stdin.write(json.dumps(trial).encode() + b"\n")
        guarding.stdin.flush()
        while not (tmp_path / "output.log").exists():
            time.sleep(0.01)
        guarding.stdout.close()
        assert guarding.communicate()[1] == b""
        assert guarding.returncode == 0


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
    told = (folder / "tiny.yaml", folder / "runs", script(folder, WATCHED), signal.SIGHUP, signal.SIG_DFL)
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
