"""Trains, measures and judges all that experiments/paper/RESULTS.md tells; what is finished is not done again.

    python experiments/paper/evidence/train.py [--root runs/evidence] [--data FOLDER] [--objectives all] [--tasks …]

Each task with three seeds of each of its objectives: `layersim fit`, then `layersim exits` for classifiers, `layersim
transfer` for images (shifts) and where another task is at hand (linear probes); at last `results.py` writes tables,
picture and the verdicts of `layersim claims` into the root. Tasks whose data do not come with a package need FOLDER,
with cifar10/, sst2/ and wikitext2/ as the recipes' headers tell; without it they are left out. `--objectives all` adds
the neighbours of the aligned loss. Models are trained side by side, and the cores divided among them.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import results
from found import measured_exits, trained
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tasks import TASKS, Task

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


def finish(job: Job, root: Path, data: Path | None, threads: int) -> None:
    """Does what is not yet done of a job."""
    task = job.task
    model = trained(root, task, job.objective, job.seed)
    if model is None:
        call(
            "fit",
            *task.fit(job.objective, job.seed, data),
            f"--trainer.default_root_dir={root}",
            "--trainer.callbacks+=callbacks.ProgressionMonitor",
            *QUIET,
            threads=threads,
        )
        model = trained(root, task, job.objective, job.seed)
        if model is None:
            raise Failed(f"no finished run of seed {job.seed} below {root / task.experiment(job.objective)}")
    if job.objective not in task.objectives:
        return
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
            threads=threads,
        )
    if (task.images or task.probe) and not (model.directory / TRANSFER_FILE).exists():
        call("transfer", checkpoint, *([f"--to_data={task.probe}"] if task.probe else []), threads=threads)


def call(*args: str, threads: int) -> None:
    """`layersim` with these arguments, in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-m", "layersim", *args], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise Failed(f"layersim {' '.join(args)}\n{(done.stdout + done.stderr)[-2000:]}")


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
    threads = max(1, (os.cpu_count() or 1) // options.workers)
    console = Console()
    failed = 0
    begun = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(options.workers) as pool:
        bar = progress.add_task("models", total=len(todo))

        def run(job: Job) -> str | None:
            start = time.monotonic()
            try:
                finish(job, root, data, threads)
            except Failed as error:
                return f"{job}: {error}"
            finally:
                progress.advance(bar)
            progress.console.print(f"{job}: {time.monotonic() - start:.0f} s", highlight=False)
            return None

        for problem in pool.map(run, todo):
            if problem:
                failed += 1
                console.print(problem, markup=False, highlight=False)
    console.print(f"{len(todo) - failed} of {len(todo)} models in {(time.monotonic() - begun) / 60:.0f} minutes")
    results.write(root, console)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
