"""Trains, measures and judges all that experiments/paper/RESULTS.md tells; what is finished is not done again.

    python experiments/paper/evidence/train.py [--root runs/evidence] [--data FOLDER] [--objectives all] [--tasks …]

Each task with three seeds of each of its objectives: `layersim fit`, then `layersim transfer` for images (shifts) and
where another task is at hand (linear probes); at last `results.py` writes tables, picture and the verdicts of `layersim
claims` into the root. Tasks whose data do not come with a package need FOLDER, with cifar10/, sst2/ and wikitext2/ as
the recipes' headers tell; without it they are left out. `--objectives all` adds the neighbours of the aligned loss.
Models are trained side by side, each in a process of its own that finds everything imported, and the cores are divided
among them.
"""

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import results
from jobs import Failed, finish, jobs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tasks import TASKS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, default=Path("runs/evidence"), help="folder of the runs, and of what comes of them"
    )
    parser.add_argument("--data", type=Path, help="folder with cifar10/, sst2/ and wikitext2/")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument("--objectives", choices=("claims", "all"), default="claims", help="all: the neighbours too")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="runs side by side; default: one a core"
    )
    options = parser.parse_args()
    root, data = options.root.resolve(), options.data and options.data.resolve()
    todo = list(jobs(options.tasks, options.objectives == "all", options.seeds, data))
    os.environ |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.workers)), "WANDB_MODE": "offline"}
    warm = multiprocessing.get_context("forkserver")
    warm.set_forkserver_preload(["layersim.commands.training", "layersim.commands.transfer", "callbacks"])
    console = Console()
    failed = 0
    begun = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(options.workers, warm, max_tasks_per_child=1) as pool,
    ):
        bar = progress.add_task("models", total=len(todo))
        asked = {pool.submit(finish, job, job.task.fit(job.objective, job.seed, data), root): job for job in todo}
        for done in as_completed(asked):
            progress.advance(bar)
            try:
                console.print(f"{asked[done]}: {done.result():.0f} s", highlight=False)
            except (Failed, BrokenProcessPool) as error:
                failed += 1
                console.print(f"{asked[done]}: {error}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(todo) - failed} of {len(todo)} models in {(time.monotonic() - begun) / 60:.0f} minutes")
    results.write(root, console)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
