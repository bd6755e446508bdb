"""`layersim sweep`: check a sweep file, and run its trials here, without a server."""

import argparse
import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from layersim.errors import UserError
from layersim.runs import directory as run_directory
from layersim.sweep.check import check
from layersim.sweep.driver import Driver
from layersim.sweep.engine import Engine
from layersim.sweep.file import read
from layersim.sweep.table import trials_table


def main(args: Sequence[str]) -> int:
    """Runs `layersim sweep FILE --count N`; the exit status is 0, or an exception says what is wrong."""
    parser = argparse.ArgumentParser(
        prog="layersim sweep",
        description="Runs the trials of a W&B sweep file on this machine, without a server. Interrupted trials are "
        "started again, so that the same command goes on where it ended.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a sweep file, as for `wandb sweep`")
    parser.add_argument(
        "--count", type=int, metavar="N", help="how many trials to run now; all of a grid where left out"
    )
    parser.add_argument(
        "--check", action="store_true", help="only try every flag and value of the file, as before `wandb sweep`"
    )
    given = parser.parse_args(args)
    file = read(given.file)
    if given.check and importlib.util.find_spec("sweeps") is None:
        print("The rules of W&B's engine are not checked: it is not installed (pip install 'layersim[sweep]').")
    else:
        Engine(file.config).rehearse()
    recipe = check(file)
    if given.check:
        print(f"{given.file}: every flag exists and takes its values; its trials log {file.metric}.")
        return 0
    if given.count is None and file.config["method"] != "grid" and "run_cap" not in file.config:
        raise UserError(f"A {file.config['method']} sweep has no end. Say --count N, or `run_cap: N` in {given.file}.")
    driver = Driver(file, Path(recipe["trainer.default_root_dir"] or run_directory.DEFAULT_ROOT))
    driver.run(given.count)
    Console().print(trials_table(driver.ledger.trials, file.metric, maximize=file.maximize))
    if best := driver.best():
        print(f"Best so far, trial {best.trial}: {file.metric} {best.history[-1]:.4g}")
        print(f"  layersim {shlex.join(file.command(best.values))}")
    print(f"Ledger: {driver.ledger.path}")
    return 0
