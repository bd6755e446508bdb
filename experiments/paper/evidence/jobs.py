"""One model of the evidence: trained, then measured, in a process of its own."""

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from found import CHANCE, against_chance, trained
from tasks import TASKS, Task

from layersim.__main__ import main as layersim
from layersim.report.lens import LENS_FILE
from layersim.report.transfer import TransferReport

KNOWLEDGE = ("standard", "aligned")
"""Objectives whose layers are read by lenses and probes, and set against chance: those that the claims compare."""
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
    found = trained(root, task, job.objective)
    if job.seed not in found:
        monitor = "--trainer.callbacks+=callbacks.ProgressionMonitor"
        call("fit", *fit, f"--trainer.default_root_dir={root}", monitor, *QUIET)
        found = trained(root, task, job.objective)
        if job.seed not in found:
            raise Failed(f"no finished run of seed {job.seed} below {root / task.experiment(job.objective)}")
    directory = found[job.seed].directory
    measured = (directory / TransferReport.FILE).exists() or job.objective not in task.objectives
    if (task.images or task.probe) and not measured:
        to = [f"--to_data={task.probe}"] if task.probe else []
        call("transfer", f"--ckpt_path={directory / 'checkpoints' / 'last.ckpt'}", *to)
    if job.objective in KNOWLEDGE and not (directory / LENS_FILE).exists():
        more = ["--max_samples=131072"] if task.tokens else []  # what reads 258 classes has many weights to learn
        call("lens", f"--ckpt_path={directory / 'checkpoints' / 'last.ckpt'}", *more)
    if job.objective in KNOWLEDGE and against_chance(root, found[job.seed]) is None:
        read = [f"--config={directory / 'config.yaml'}", f"--ckpt_path={directory / 'checkpoints' / 'last.ckpt'}"]
        null = ["--trainer.callbacks+=callbacks.SimilarityHeatmaps", "--trainer.callbacks.null=200"]
        call("validate", *read, f"--trainer.default_root_dir={root / CHANCE}", *null, *QUIET)
    return time.monotonic() - start


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
