"""Trains, measures and judges all that experiments/paper/RESULTS.md tells; what is finished is not done again.

    python experiments/paper/evidence/train.py [--root runs/evidence] [--data FOLDER] [--objectives all] [--tasks …]

Each task with three seeds of each of its objectives: `layersim fit`, then `layersim exits` for classifiers, `layersim
transfer` for images (shifts) and where another task is at hand (linear probes); at last `results.py` writes tables,
picture and the verdicts of `layersim claims` into the root. Tasks whose data do not come with a package need FOLDER,
with cifar10/, sst2/ and wikitext2/ as the recipes' headers tell; without it they are left out. `--objectives all` adds
the neighbours of the aligned loss. Models are trained side by side, each in a process of its own that finds everything
imported, and the cores are divided among them.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import results
from found import Trained, measured_exits, trained
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tasks import TASKS, Task

from layersim.__main__ import main as layersim
from layersim.report.transfer import TRANSFER_FILE

QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@dataclass(frozen=True)
class Job:
    """One model: trained, then measured."""

    task: Task
    objective: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task.name} {self.objective} {self.seed}"


class Failed(Exception):
    """A command did not end well; its last words."""


def jobs(names: list[str], every: bool, seeds: list[int], data: Path | None) -> Iterator[Job]:
    """Seed by seed, the claims' objectives first: wherever it is cut off, most is told of what there is."""
    tasks = [TASKS[name] for name in names if data is not None or TASKS[name].folder is None]
    for neighbours in (False, True) if every else (False,):
        for seed in seeds:
            for task in tasks:
                yield from (Job(task, name, seed) for name in (task.neighbours if neighbours else task.objectives))


def finish(job: Job, fit: list[str], root: Path) -> float:
    """Does what is not yet done of a job, whose `layersim fit` takes these arguments; the seconds that took."""
    start = time.monotonic()
    task = job.task
    model = trained(root, task, job.objective, job.seed)
    if model is None:
        call(
            "fit",
            *fit,
            f"--trainer.default_root_dir={root}",
            "--trainer.callbacks+=callbacks.ProgressionMonitor",
            *QUIET,
        )
        model = trained(root, task, job.objective, job.seed)
        if model is None:
            raise Failed(f"no finished run of seed {job.seed} below {root / task.experiment(job.objective)}")
    if job.objective in task.objectives:
        measure(job, model, root)
    return time.monotonic() - start


def measure(job: Job, model: Trained, root: Path) -> None:
    """Exits, shifts and probes, as far as the task has them and they are not there."""
    task = job.task
    checkpoint = f"--ckpt_path={model.directory / 'checkpoints' / 'last.ckpt'}"
    if not task.tokens and measured_exits(root, model) is None:
        call(
            "exits",
            checkpoint,
            "--risk=0.05",
            "--measure_speed=false",  # seconds beside other work would mean little
            f"--seed={job.seed}",
            f"--trainer.default_root_dir={root}",
            f"--experiment=exits/{task.name}/{job.objective}",
            *QUIET,
        )
    if (task.images or task.probe) and not (model.directory / TRANSFER_FILE).exists():
        call("transfer", checkpoint, *([f"--to_data={task.probe}"] if task.probe else []))


def call(*args: str) -> None:
    """`layersim` with these arguments, in this process, whose words are kept for the case that it fails."""
    sys.argv = ["layersim", *args]
    with tempfile.TemporaryFile("w+") as said:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(said.fileno(), stream.fileno())
        try:
            status: object = layersim(args)
        except SystemExit as left:
            status = left.code
        except Exception:
            traceback.print_exc()
            status = 1
        if status:
            sys.stdout.flush()
            said.seek(0)
            raise Failed(f"layersim {' '.join(args)}\n{said.read()[-2000:]}")


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
    warm.set_forkserver_preload(["layersim.cli", "layersim.transfer.command", "callbacks"])
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
