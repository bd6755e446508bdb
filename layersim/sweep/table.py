"""What a sweep has come to, as a table for the terminal."""

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from layersim.sweep.ledger import Trial


def trials_table(trials: Sequence[Trial], metric: str, *, maximize: bool) -> Table:
    """A row a trial: its values, and the metric as it was last; the best first, then those without a number.

    Args:
        trials: in any order.
        metric: the name of what is optimised.
        maximize: whether more is better.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial.values))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("trial", justify="right")
    for name in names:
        table.add_column(Text(name.rpartition(".")[2]), overflow="fold")
    table.add_column(Text(metric), justify="right", overflow="fold")
    table.add_column("state")
    sign = -1 if maximize else 1
    for trial in sorted(trials, key=lambda one: math.inf if math.isnan(one.reached) else sign * one.reached):
        values = [Text(str(trial.values.get(name, ""))) for name in names]
        table.add_row(str(trial.trial), *values, f"{trial.history[-1]:.4g}" if trial.history else "", trial.state)
    return table
