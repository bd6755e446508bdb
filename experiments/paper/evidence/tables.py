"""Tables in Markdown of trained models, and of verdicts on them.

Numbers are means over the seeds ± their standard deviation; of one seed, its number alone. Differences are means over
the seeds that both have, with Student's 95 % interval in brackets.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from found import Trained
from numpy.typing import NDArray

from layersim.errors import UserError
from layersim.report.claims import CLAIMS, Verdict
from layersim.report.claims.intervals import Estimate, Measured, estimate
from layersim.report.claims.paper import absolute_depth

Numbers = NDArray[np.float64]
Trainings = dict[str, list[Trained]]
"""A task's runs by objective."""


def by_task(models: Iterable[Trained]) -> dict[str, Trainings]:
    found: dict[str, Trainings] = {}
    for model in models:
        found.setdefault(model.task.name, {}).setdefault(model.objective, []).append(model)
    return found


def quality(model: Trained) -> Numbers:
    """(L,) accuracies, or perplexities of a byte where tokens are predicted."""
    values = model.record.values("loss" if model.task.tokens else "accuracy")
    if values is None:
        raise UserError(f"{model.directory} did not record what its layers are worth")
    return np.exp(values) if model.task.tokens else np.asarray(values)


def over_seeds(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def layers_table(arms: Trainings, objectives: Iterable[str]) -> str:
    """A row a layer, a column an objective; below, what holds for all layers together."""
    shown = {name: arms[name] for name in objectives if name in arms}
    layers = next(iter(shown.values()))[0].record.layers
    rows = [
        [str(layer + 1), *(over_seeds([quality(model)[layer] for model in models]) for models in shown.values())]
        for layer in range(layers)
    ]
    for name, digits in {
        "effective_depth": 1,
        "saturated_early": 3,
        "mean_saturation_layer": 2,
        "exit_curve_area": 3,
    }.items():
        told = [[model.record.values(name) for model in models] for models in shown.values()]
        if all(value is not None for values in told for value in values):
            rows.append([name.replace("_", " "), *(over_seeds(values, digits) for values in told)])
    return table(["layer", *shown], rows)


def overview_table(found: Mapping[str, Trainings]) -> str:
    """A row an objective, a column a task with neighbours: half of the layers / two thirds / all, means over the seeds,
    with ▲ where better than the aligned loss beyond the 95 % interval of the difference, with ▼ where worse."""
    shown = [arms for arms in found.values() if has_neighbours(arms)]
    objectives = dict.fromkeys(objective for arms in shown for objective in arms)
    rows = [
        [objective, *(_overview(arms, objective) if objective in arms else "" for arms in shown)]
        for objective in objectives
    ]
    return table(["objective", *(next(iter(arms.values()))[0].task.title for arms in shown)], rows)


def has_neighbours(arms: Trainings) -> bool:
    """Whether more than the claims' objectives were trained."""
    return any(model.objective in model.task.neighbours for models in arms.values() for model in models)


def _overview(arms: Trainings, objective: str) -> str:
    models, others = arms[objective], arms.get("aligned", [])
    tokens = models[0].task.tokens
    cells = []
    for depth in _depths(models[0]):
        cell = f"{np.mean([quality(model)[depth - 1] for model in models]):.{2 if tokens else 3}f}"
        found = None if objective == "aligned" else _more(models, others, depth)
        if found is not None and found.low is not None and found.high is not None and not found.low <= 0 <= found.high:
            cell += "▲" if (found.value < 0) == tokens else "▼"
        cells.append(cell)
    return " / ".join(cells)


def _depths(model: Trained) -> tuple[int, int, int]:
    """Half of the layers, two thirds, all."""
    layers = model.record.layers
    return layers // 2, layers * 2 // 3, layers


def objectives_table(arms: Trainings) -> str:
    """A row an objective: half of the layers, two thirds, all; what it has more there than the aligned loss, and at the
    last layer more than standard training, by seeds, with 95 % intervals."""
    depths = _depths(next(iter(arms.values()))[0])
    compared = [*(("aligned", depth) for depth in depths), ("standard", depths[-1])]
    rows = []
    for name, models in arms.items():
        cells = [over_seeds([quality(model)[depth - 1] for model in models]) for depth in depths]
        for other, depth in compared:
            with_partner = name != other and other in arms
            cells.append(_told(_more(models, arms[other], depth)) if with_partner else "")
        rows.append([name, *cells, str(len(models))])
    header = [f"layer {depth}" for depth in depths] + [f"{depth} − {other}'s" for other, depth in compared]
    return table(["objective", *header, "seeds"], rows)


def _more(models: Sequence[Trained], others: Sequence[Trained], depth: int) -> Estimate | None:
    """How much more the models have at a layer, 1 … L, than others of their seeds; None without a common seed."""
    first, second = ({model.seed: quality(model)[depth - 1 : depth] for model in side} for side in (models, others))
    pairs = [Measured(first[seed] - second[seed]) for seed in sorted(first.keys() & second.keys())]
    return estimate(pairs, paired=True) if pairs else None


def _told(found: Estimate | None) -> str:
    if found is None:
        return ""
    interval = "" if found.low is None or found.high is None else f" ({found.low:+.3f} … {found.high:+.3f})"
    return f"{found.value:+.3f}{interval}"


def verdicts_table(judged: Mapping[str, Sequence[Verdict]]) -> str:
    """A row a claim, a column a task by its title: the number for the aligned loss, and the verdict as a sign."""
    rows = [
        [claim.name, *(_verdict(claim.name, found) for found in judged.values()), claim.published]
        for claim in (*CLAIMS, absolute_depth)
    ]
    return table(["claim", *judged, "paper"], rows)


def _verdict(claim: str, verdicts: Sequence[Verdict]) -> str:
    for found in verdicts:
        if found.claim.name == claim and "aligned" in found.arms and found.estimate is not None:
            sign = {"holds": "✓", "does not hold": "✗", "cannot tell": "?"}[found.answer]
            return f"{found.estimate.value:.3f} {sign}"
    return ""
