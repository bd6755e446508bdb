"""`layersim runs`: which runs are there, and what became of each."""

import time
from pathlib import Path

from rich.console import Console

from layersim.report.runs import RunsTable, find_runs


def runs(root: list[Path] = [Path("runs")]) -> None:  # noqa: B006 - read only
    """List runs, the newest first: which verbs made them, model, objective, accuracy, effective depth, age, and which
    trainings can go on.

    Args:
        root: where to look, at any depth, or a pattern of some; in runs where left out

    Raises:
        UserError: a directory that does not exist.
    """
    if not (found := find_runs(root)):
        print(f"No run in {', '.join(map(str, root))}.")
        return
    Console().print(RunsTable(found, time.time()), soft_wrap=True)  # which crops no path
    if any(run.resumable for run in found):
        print("A training that can go on does so by: layersim fit --resume=RUN")
    for notice in (run.notice for run in found if run.notice):
        print(notice)
