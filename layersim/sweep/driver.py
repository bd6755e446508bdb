"""A sweep without a server: draw a trial, run the sweep's command line, write down what came of it."""

import csv
import json
import math
import os
import select
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from layersim.errors import UserError, as_user_error
from layersim.runs.signals import ended_by_signals
from layersim.sweep.engine import Engine
from layersim.sweep.file import SweepFile
from layersim.sweep.ledger import Ledger, State, Trial

_POLL_SECONDS = 0.2
_AN_AGENTS = ("WANDB_SWEEP_ID", "WANDB_RUN_ID")
"""What W&B's agent tells a trial of its own."""


def installed_command() -> Path:
    """The command `layersim` of this Python, so that a trial is what the user would start."""
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    places = [Path(sysconfig.get_path("scripts", scheme), "layersim") for scheme in schemes]
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"Trials are started by the command layersim, but {places[0]} is not there: pip install layersim.")


class Driver:
    """Runs the trials of a sweep one after the other, each as a process of its own that ends with this one.

    Args:
        file: the sweep; it has been checked.
        root: where runs are kept. Trial 3 lives under `<root>/sweeps/<file's name>/trial-003/`, with all that it
            printed in `output.log`; the ledger lies beside the trials.
        program: the Python script that is run with a trial's words; the installed command where None.
        warm_up: the name of a function that imports what the program needs, once for all trials
            (`package.module:function`).
    """

    def __init__(self, file: SweepFile, root: Path, program: Path | None = None, warm_up: str | None = None) -> None:
        self._file = file
        self._warm_up = [] if warm_up is None else [warm_up]
        self._program = str(program or installed_command())
        self._root = root
        self._place = f"sweeps/{file.path.stem}"
        self._engine = Engine(file.config)
        self.ledger = Ledger(root / self._place / "ledger.jsonl", file.config)

    def run(self, count: int | None) -> None:
        """Runs `count` trials, or as many as there are: first those that were interrupted, then new ones."""
        with self.ledger.held(), ended_by_signals(), self._guarding() as guarding:
            for _ in range(sys.maxsize if count is None else count):
                trial = self._next()
                if trial is None:
                    return
                self._run(trial, guarding)

    @contextmanager
    def _guarding(self) -> Iterator[subprocess.Popen[bytes]]:
        """The process that starts the trials. Where this program is interrupted, it ends, and with it a trial."""
        command = [sys.executable, "-P", "-m", "layersim.sweep.guard", *self._warm_up]
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        here = {name: value for name, value in os.environ.items() if name not in _AN_AGENTS}
        options["env"] = here | self._file.environment
        # In a session of its own: a signal of the terminal's is the driver's alone.
        with subprocess.Popen(command, start_new_session=True, pass_fds=[self.ledger.lock], **options) as process:
            try:
                yield process
            finally:
                assert process.stdin is not None
                process.stdin.close()
                process.terminate()  # it may still be importing

    def _next(self) -> Trial | None:
        trials = self.ledger.trials
        for trial in trials:
            if trial.state == "running":  # by a program that is no more
                return replace(trial, history=[], directory=None)
        target, most = self._file.config["metric"].get("target"), self._file.config.get("run_cap", sys.maxsize)
        sign = 1 if self._file.maximize else -1
        reached = target is not None and any(sign * trial.reached >= sign * target for trial in trials)
        if reached or len(trials) >= most or (values := self._engine.suggest(trials)) is None:
            print("The target is reached." if reached else "All trials have been run.")
            return None
        return Trial(len(trials) + 1, values, "running")

    def _run(self, trial: Trial, guarding: subprocess.Popen[bytes]) -> None:
        self.ledger.write(trial)
        experiment = f"{self._place}/trial-{trial.trial:03d}"
        folder = self._root / experiment
        folder.mkdir(parents=True, exist_ok=True)
        before = set(folder.iterdir())
        root = os.path.join(os.curdir, self._root)  # 2024.0 alone would be read as a number
        words = self._file.command(trial.values, f"--experiment={experiment}", f"--trainer.default_root_dir={root}")
        said = ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in trial.values.items())
        print(f"trial {trial.trial}: {said}", flush=True)
        started, stopped, output = time.monotonic(), False, folder / "output.log"
        others = [one for one in self.ledger.trials if one.trial != trial.trial]
        assert guarding.stdin is not None
        assert guarding.stdout is not None
        asked = {"words": [self._program, *words], "output": str(output)}
        guarding.stdin.write(json.dumps(asked).encode() + b"\n")
        while not select.select([guarding.stdout], [], [], _POLL_SECONDS)[0]:
            trial = self._look(trial, folder, before)
            if not stopped and self._engine.stops(trial, others):
                stopped = True
                guarding.terminate()
        if not (status := guarding.stdout.readline().strip()):
            raise UserError(f"The process that starts the trials has ended. Look into {output}, and start again.")
        trial = self._look(trial, folder, before)
        state: State = "stopped" if stopped else "failed" if int(status) else "finished"
        self.ledger.write(trial := replace(trial, state=state))
        self._tell(trial, output, time.monotonic() - started)

    def _look(self, trial: Trial, folder: Path, before: set[Path]) -> Trial:
        """The trial with its directory and the history of its metric, as far as it has come."""
        made = sorted(path for path in set(folder.iterdir()) - before if path.is_dir())
        if not made:
            return trial
        return replace(
            trial, directory=str(made[-1]), history=metric_history(made[-1] / "metrics.csv", self._file.metric)
        )

    def _tell(self, trial: Trial, output: Path, seconds: float) -> None:
        if trial.state == "failed":
            last = output.read_text(encoding="locale", errors="replace").strip().rpartition("\n")[2]
            print(f"  failed: {last} ({output})")
            return
        if not trial.history:
            raise UserError(
                f"Trial {trial.trial} logged no {self._file.metric!r}. Change `metric` in {self._file.path}: a run's "
                f"metrics.csv, as in {trial.directory}, names what there is."
            )
        print(f"  {trial.state} after {seconds:.0f} s: {self._file.metric} {trial.history[-1]:.4g}, {trial.directory}")

    def best(self) -> Trial | None:
        """The trial whose last value of the metric is best, among those that ended well."""
        done = [trial for trial in self.ledger.trials if trial.state == "finished" and not math.isnan(trial.reached)]
        sign = 1 if self._file.maximize else -1
        return max(done, key=lambda trial: sign * trial.reached, default=None)


def metric_history(path: Path, name: str) -> list[float]:
    """A metric's values in a run's `metrics.csv`, in order; none where the file is not there yet."""
    if not path.is_file():
        return []
    with as_user_error(f"The values of {name} in {path} cannot be read"):
        text = path.read_text(encoding="locale")
        whole = text[: text.rfind("\n") + 1]  # the last line may be half written
        return [float(row[name]) for row in csv.DictReader(whole.splitlines()) if row.get(name)]
