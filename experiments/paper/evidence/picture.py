"""The evidence in one picture."""

import numpy as np
from tables import Trainings, quality
from tasks import TASKS

from layersim.report import Picture
from layersim.report.drawing.pictures import COLORS, beside, curves
from layersim.report.quantity import RATIO, Quantity, curve

DRAWN = {"standard": COLORS[0], "aligned": COLORS[1], "separate_heads": COLORS[2], "alternating": COLORS[3]}


def picture(found: dict[str, Trainings]) -> Picture:
    """A panel a task: every layer under standard, aligned and separate-heads (or alternating) training. A line is the
    mean over the seeds, its band one standard deviation to both sides."""
    panels = []
    for name, arms in found.items():
        shown: dict[str, Quantity] = {}
        for objective in DRAWN:
            if objective in arms and objective in TASKS[name].objectives:
                values = np.stack([quality(model) for model in arms[objective]])
                mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else 0.0
                ends = {"low": (mean - spread).tolist(), "high": (mean + spread).tolist()}
                kind = {"unit": RATIO} if TASKS[name].tokens else {"range": (0, 1)}
                shown[objective.replace("_", " ")] = curve(mean.tolist(), interval=ends, **kind)
        what = "perplexity" if TASKS[name].tokens else "accuracy"
        colors = [DRAWN[one.replace(" ", "_")] for one in shown]
        title = f"{TASKS[name].title}: {what}"
        panels.append(curves(shown, title, width=260, height=190, series=[*shown], colors=colors))
    return beside(panels, 3)
