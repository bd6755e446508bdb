"""`layersim sweep FILE`: check a sweep file, and run its trials here, without a server."""

import math
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from layersim.commands.sweep_check import check_sweep
from layersim.errors import UserError, at_least, user_path
from layersim.report.terminal import plain_table
from layersim.runs.directory import DEFAULT_ROOT
from layersim.sweep.driver import Driver
from layersim.sweep.engine import Engine
from layersim.sweep.file import read
from layersim.sweep.ledger import Trial


def sweep(file: Path, *, count: int | None = None, check: bool = False) -> None:
    """Runs the trials of a W&B sweep file on this machine, without a server. Interrupted trials are started again, so
    that the same command goes on where it ended.

    Args:
        file: a sweep file, as for `wandb sweep`
        count: how many trials to run now; all of a grid where left out
        check: only try every flag and value of the file, as before `wandb sweep`

    Raises:
        UserError: a file that is no sweep of layersim's, what an option or W&B's engine refuses, or no end in sight.
    """
    read_file, count = read(file), None if count is None else at_least(1, "--count", count)
    if check and find_spec("sweeps") is None:
        print("The rules of W&B's engine are not checked: it is not installed (pip install 'layersim[sweep]').")
    else:
        Engine(read_file.config).rehearse()
    recipe = check_sweep(read_file)
    if check:
        print(f"{file}: every flag exists and takes its values; its trials log {read_file.metric}.")
        return
    if count is None and read_file.config["method"] != "grid" and "run_cap" not in read_file.config:
        raise UserError(f"A {read_file.config['method']} sweep has no end. Say --count N, or `run_cap: N` in {file}.")
    root = user_path(recipe["trainer.default_root_dir"] or DEFAULT_ROOT)
    driver = Driver(read_file, root, warm_up="layersim.commands.default_callbacks:import_for_trials")
    driver.run(count)
    Console().print(trials_table(driver.ledger.trials, read_file.metric, maximize=read_file.maximize))
    if best := driver.best():
        print(f"Best so far, trial {best.trial}: {read_file.metric} {best.history[-1]:.4g}")
        print(f"  layersim {shlex.join(read_file.command(best.values))}")
    print(f"Ledger: {driver.ledger.path}")


def trials_table(trials: Sequence[Trial], metric: str, *, maximize: bool) -> Table:
    """A row a trial: its values, and the metric as it was last; the best first, then those without a number."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.values))
    sign = -1 if maximize else 1
    rows = [
        (
            str(trial.trial),
            *(str(trial.values.get(name, "")) for name in names),
            f"{trial.history[-1]:.4g}" if trial.history else "",
            trial.state,
        )
        for trial in sorted(trials, key=lambda one: math.inf if math.isnan(one.reached) else sign * one.reached)
    ]
    short = [name.rpartition(".")[2] for name in names]
    return plain_table(["trial", *short, metric, "state"], rows, left=(*short, "state"), overflow="fold")
