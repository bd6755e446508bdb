"""Tables in Markdown of trained models, and of verdicts on them.

Numbers are means over the seeds ± their standard deviation; of one seed, its number alone.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from found import Trained
from numpy.typing import NDArray

from layersim.errors import UserError
from layersim.report.claims import CLAIMS, Finding

Numbers = NDArray[np.float64]
Arms = dict[str, list[Trained]]
"""A task's runs by objective."""


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


def verdicts_table(findings: Mapping[str, Sequence[Finding]]) -> str:
    """A row a claim, a column a task by its title: the number for the aligned loss, and the verdict as a sign."""
    rows = [
        [claim.name, *(_verdict(claim.name, found) for found in findings.values()), claim.published] for claim in CLAIMS
    ]
    return table(["claim", *findings, "paper"], rows)


def _verdict(claim: str, findings: Sequence[Finding]) -> str:
    for finding in findings:
        if finding.claim.name == claim and "Aligned" in finding.of.split(" less ") and finding.estimate is not None:
            sign = {"holds": "✓", "does not hold": "✗", "cannot tell": "?"}[finding.verdict]
            return f"{finding.estimate.value:.3f} {sign}"
    return ""
