"""Tables, picture and verdicts of all finished runs below a root.

    python experiments/paper/evidence/tables.py ROOT

Writes tables.md (every layer of every task, and the objectives side by side), claims.md (`layersim claims`) and
evidence.png into ROOT. Numbers are means over the seeds ± their standard deviation; of one seed, its number alone.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from found import Trained, all_trained, measured_exits
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from tasks import TASKS

from layersim.errors import UserError
from layersim.report import save_figure
from layersim.report.canvas import COLORS, MARKERS, place, sheet, write_labels, write_title
from layersim.report.claims.command import judge_runs
from layersim.report.claims.paper import LIMITS
from layersim.report.claims.sheet import markdown
from layersim.report.curves import scale_layers
from layersim.report.legend import draw_legend

Numbers = NDArray[np.float64]
Arms = dict[str, list[Trained]]
"""A task's runs by objective."""

DRAWN = ("standard", "aligned", "separate_heads", "alternating")


def by_task(models: Iterable[Trained]) -> dict[str, Arms]:
    found: dict[str, Arms] = {}
    for model in models:
        found.setdefault(model.task.name, {}).setdefault(model.objective, []).append(model)
    return found


def quality(model: Trained) -> Numbers:
    """(L,) accuracies, or perplexities of a byte where tokens are predicted."""
    values = model.record.loss if model.task.tokens else model.record.accuracy
    if values is None:
        raise UserError(f"{model.directory} did not record what its layers are worth")
    return np.exp(values) if model.task.tokens else np.asarray(values)


def over_seeds(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """Mean ± standard deviation."""
    mean = f"{np.mean(values):{sign}.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def layers_table(arms: Arms, objectives: Iterable[str]) -> str:
    """A row a layer, a column an objective; below, what holds for all layers together."""
    shown = {name: arms[name] for name in objectives if name in arms}
    layers = next(iter(shown.values()))[0].record.layers
    rows = [
        [str(layer + 1), *(over_seeds([quality(model)[layer] for model in models]) for models in shown.values())]
        for layer in range(layers)
    ]
    for name, digits in {"saturated_early": 3, "mean_saturation_layer": 2, "exit_curve_area": 3}.items():
        told = [[getattr(model.record, name) for model in models] for models in shown.values()]
        if all(value is not None for values in told for value in values):
            rows.append([name.replace("_", " "), *(over_seeds(values, digits) for values in told)])
    return table(["layer", *shown], rows)


def objectives_table(arms: Arms) -> str:
    """A row an objective: half of the layers, two thirds, all; and what the last layer gains on standard training."""
    layers = next(iter(arms.values()))[0].record.layers
    depths = (layers // 2, layers * 2 // 3, layers)
    standard = {model.seed: quality(model)[-1] for model in arms.get("standard", [])}
    rows = []
    for name, models in arms.items():
        values = [quality(model) for model in models]
        gains = [
            value[-1] - standard[model.seed]
            for model, value in zip(models, values, strict=True)
            if model.seed in standard
        ]
        cells = [over_seeds([value[depth - 1] for value in values]) for depth in depths]
        rows.append(
            [name, *cells, over_seeds(gains, sign="+") if gains and name != "standard" else "", str(len(models))]
        )
    return table(["objective", *(f"layer {depth}" for depth in depths), "last − standard's", "seeds"], rows)


def picture(found: dict[str, Arms]) -> Figure:
    """A panel a task: every layer under standard, aligned and separate-heads (or alternating) training."""
    width, height, left, gap, columns = 2.9, 2.15, 0.65, 0.75, 3
    rows = -(-len(found) // columns)
    figure = sheet(left + columns * width + (columns - 1) * gap + 0.1, rows * (height + 0.95) + 0.35)
    lines = {}
    for place_, (name, arms) in enumerate(found.items()):
        row, column = divmod(place_, columns)
        bottom = 0.35 + (rows - 1 - row) * (height + 0.95) + 0.5
        axes = place(figure, left + column * (width + gap), bottom, width, height)
        task = TASKS[name]
        write_title(axes, task.title)
        write_labels(axes, "layer", "" if column else "accuracy")
        for look, objective in enumerate(DRAWN):
            if objective not in arms:
                continue
            values = np.stack([quality(model) for model in arms[objective]])
            at, mean = np.arange(1, values.shape[1] + 1), values.mean(axis=0)
            (lines[objective],) = axes.plot(
                at, mean, color=COLORS[look], marker=MARKERS[look], markersize=4, linewidth=1.6, clip_on=False, zorder=3
            )
            if len(values) > 1:
                spread = values.std(axis=0, ddof=1)
                axes.fill_between(at, mean - spread, mean + spread, color=COLORS[look], alpha=0.18, linewidth=0)
        scale_layers(axes, values.shape[1])
        if task.tokens:
            axes.set_ylabel(
                "perplexity of a byte", fontsize=axes.xaxis.label.get_size(), color=axes.xaxis.label.get_color()
            )
        else:
            axes.set_ylim(0, 1)
    draw_legend(figure, lines, left, 0.3, columns * width)
    return figure


def write(root: Path, console: Console) -> None:
    """All three files."""
    models = all_trained(root)
    if not models:
        console.print(f"No finished run in {root}.")
        return
    found = by_task(models)
    parts = []
    for name, arms in found.items():
        task = TASKS[name]
        record = next(iter(arms.values()))[0].record
        what = "Perplexity of a byte" if task.tokens else "Accuracy"
        parts.append(
            f"## {task.title}\n\n{what} of {record.samples:,} held-out {'tokens' if task.tokens else 'samples'}:\n"
        )
        parts.append(layers_table(arms, task.objectives) + "\n")
        if any(objective in arms for objective in task.neighbours):
            parts.append("Objectives side by side:\n\n" + objectives_table(arms) + "\n")
    (root / "tables.md").write_text("\n".join(parts))
    judged = [model for model in models if model.objective in model.task.objectives]
    directories = [
        path for model in judged for path in (model.directory, measured_exits(root, model)) if path is not None
    ]
    (root / "claims.md").write_text(
        markdown(*judge_runs(directories, {name: limit for name, (limit, _) in LIMITS.items()}))
    )
    save_figure(picture(found), root / "evidence.png")
    for name in ("tables.md", "claims.md", "evidence.png"):
        console.print(f"{root / name}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    write(Path(sys.argv[1]).resolve(), Console())
