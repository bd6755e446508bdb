"""Sweeps with the real `wandb sweep` and `wandb agent`, against a stand-in for the server."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests import tiny
from tests.measured import measured
from tests.processes import PATIENCE
from tests.runs.test_tracking import flat
from tests.wandb_server import Run, Store, WandbServer

PROGRAM = Path(sys.executable).with_name("layersim")
RATE = "model.optimizer.init_args.lr"


def wandb(server: WandbServer, home: Path, *args: str) -> str:
    """Runs the stock command; gives what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *args],
        cwd=home,
        env=server.process_environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class Swept(NamedTuple):
    store: Store
    printed: str
    home: Path

    def directory(self, run: Run) -> Path:
        (file,) = self.home.glob(f"runs/*/*/wandb/run-*-{run.name}")
        return file.parent.parent


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    """A sweep of three trials: on no process, which is refused, on one, and on two."""
    home = tmp_path_factory.mktemp("sweep")
    parameters = {
        "trainer.devices": [0, 1, 2],
        "data.init_args.batch_size": [64.0],
        "data.init_args.eval_batch_size": [None],
        "model.objective.weights": ["uniform"],
        RATE: [0.003],
    }
    given = [flag for flag in tiny.FLAGS if flag != "--trainer.logger=false"]
    given += ["--trainer.logger.init_timeout=600", "--trainer.logger.finish_timeout=600"]
    file = {
        "program": str(PROGRAM),
        "project": "tiny",
        "method": "grid",
        "metric": {"name": "val/accuracy", "goal": "maximize"},
        "parameters": {key: {"values": values} for key, values in parameters.items()},
        "command": [
            "${program}",
            "fit",
            *given,
            "--trainer.strategy=ddp",
            "--model.optimizer=AdamW",
            "${args}",
        ],
    }
    (home / "sweep.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    with WandbServer() as server:
        (agent,) = re.findall(r"wandb agent (\S+)", wandb(server, home, "sweep", "sweep.yaml"))
        yield Swept(server.store, wandb(server, home, "agent", "--count", "3", agent), home)


def test_each_trial_is_one_run_and_none_is_left_over(swept: Swept) -> None:
    (sweep,) = swept.store.sweeps.values()
    runs = swept.store.runs
    assert list(runs) == [f"{sweep.name}-trial{number}" for number in (1, 2, 3)]
    assert {run.sweep for run in runs.values()} == {sweep.name}
    assert {run.project for run in runs.values()} == {"tiny"}
    assert len({swept.directory(run) for run in list(runs.values())[1:]}) == 2


def test_a_trial_that_fails_is_reported_and_the_agent_goes_on(swept: Swept) -> None:
    ends = [(run.state, run.exit_code) for run in swept.store.runs.values()]
    assert ends == [("failed", 1), ("finished", 0), ("finished", 0)]
    assert "devices" in swept.printed


@pytest.mark.parametrize("processes", [1, 2])
def test_what_a_trial_sends_is_what_its_run_recorded(swept: Swept, processes: int) -> None:
    run = list(swept.store.runs.values())[processes]
    directory = swept.directory(run)
    recorded = flat(yaml.safe_load((directory / "config.yaml").read_text()))
    assert recorded["trainer.devices"] == str(processes), "the option takes words too, and W&B keeps the sweep's number"
    del recorded["model.objective.init_args.weights"]  # the sweep says it in short
    told = recorded | {"trainer.devices": processes, "model.objective.weights": "uniform"}
    assert run.settings == told, "keys are flags, once each"
    assert run.settings["data.init_args.batch_size"] == 64
    assert run.settings["data.init_args.eval_batch_size"] is None
    assert run.settings[RATE] == 0.003
    (record,) = measured(directory)
    assert record["samples"] == 360
    assert record["step"] == -(-1437 // (64 * processes)), "it really trained on so many processes"
    assert run.summary["val/accuracy"] == pytest.approx(record["accuracy"][-1])
    assert run.summary["val/accuracy/layer_01"] == pytest.approx(record["accuracy"][0])
