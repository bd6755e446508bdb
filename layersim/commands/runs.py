"""`layersim runs`: which runs are there, and what became of each."""

import time
from pathlib import Path


def runs(root: list[Path] = [Path("runs")]) -> None:  # noqa: B006 - read only
    """List runs: objective, accuracy, effective depth, age; the newest first.

    Args:
        root: where to look, at any depth

    Raises:
        UserError: a directory that does not exist.
    """
    from rich.console import Console

    from layersim.report.runs import find_runs, runs_table

    console = Console()
    if not (found := find_runs(root)):
        console.print(f"No run in {', '.join(map(str, root))}.", markup=False, soft_wrap=True)
        return
    table = runs_table(found, root[0] if len(root) == 1 else Path(), time.time())
    # a directory that is folded cannot be copied: rather a line that the terminal wraps
    natural = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.width = max(console.width, natural)
    console.print(table)
    for run in found:
        if run.notice:
            console.print(run.notice, markup=False, highlight=False, soft_wrap=True)
