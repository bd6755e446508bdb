"""The evidence in one picture."""

import numpy as np
from matplotlib.figure import Figure
from tables import Trainings, quality
from tasks import TASKS

from layersim.report.drawing.canvas import COLORS, MARKERS, place, sheet, write_labels, write_title
from layersim.report.drawing.curves import scale_layers
from layersim.report.drawing.legend import draw_legend

DRAWN = ("standard", "aligned", "separate_heads", "alternating")
WIDTH, HEIGHT, LEFT, GAP, BETWEEN, COLUMNS = 2.9, 2.15, 0.65, 0.75, 0.95, 3
"""Inches: a panel, what lies left of the first, between two and between rows; and panels in a row."""


def picture(found: dict[str, Trainings]) -> Figure:
    """A panel a task: every layer under standard, aligned and separate-heads (or alternating) training. A line is the
    mean over the seeds, its band one standard deviation to both sides."""
    rows = -(-len(found) // COLUMNS)
    figure = sheet(LEFT + COLUMNS * WIDTH + (COLUMNS - 1) * GAP + 0.1, rows * (HEIGHT + BETWEEN) + 0.35)
    lines = {}
    for number, (name, arms) in enumerate(found.items()):
        row, column = divmod(number, COLUMNS)
        bottom = 0.85 + (rows - 1 - row) * (HEIGHT + BETWEEN)
        axes = place(figure, LEFT + column * (WIDTH + GAP), bottom, WIDTH, HEIGHT)
        tokens = TASKS[name].tokens
        write_title(axes, TASKS[name].title)
        write_labels(axes, "layer", "perplexity of a byte" if tokens else "" if column else "accuracy")
        for look, objective in enumerate(DRAWN):
            if objective not in arms or objective not in TASKS[name].objectives:
                continue
            values = np.stack([quality(model) for model in arms[objective]])
            at, mean = np.arange(1, values.shape[1] + 1), values.mean(axis=0)
            (lines[objective.replace("_", " ")],) = axes.plot(
                at, mean, color=COLORS[look], marker=MARKERS[look], markersize=4, linewidth=1.6, clip_on=False, zorder=3
            )
            if len(values) > 1:
                spread = values.std(axis=0, ddof=1)
                axes.fill_between(at, mean - spread, mean + spread, color=COLORS[look], alpha=0.18, linewidth=0)
        scale_layers(axes, values.shape[1])
        if not tokens:
            axes.set_ylim(0, 1)
    draw_legend(figure, lines, LEFT, 0.3, COLUMNS * WIDTH)
    return figure
