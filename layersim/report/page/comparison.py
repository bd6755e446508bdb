"""Runs side by side on the page: groups over seeds as mean and 95 % interval, and each run's own line."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from layersim.report.configuration import seed_of
from layersim.report.numbers import three
from layersim.report.page.markup import count, table, worth
from layersim.report.page.run_page import RunPage, finite
from layersim.report.page.seeds import Group, differences, limits, mean_interval, shared_quantities
from layersim.report.records import LayerRecord


def drawn_groups(groups: Sequence[Group], records: Sequence[LayerRecord]) -> list[dict[str, Any]]:
    """The groups as the page's script draws them: by quantity, the mean at each layer, its interval's ends, and what it
    can be."""
    return [_drawn_group(group, [records[place] for place in group.members]) for group in groups]


def interval_table(groups: Sequence[Group], records: Sequence[LayerRecord]) -> str:
    """Accuracy by layer, of language models perplexity, as a table: mean ± half the width of the 95 % interval."""
    columns = {}
    name = "perplexity" if all(record.perplexity for record in records) else "accuracy"
    for group in groups:
        values = shared_quantities([records[place] for place in group.members]).get(name)
        if values is not None:
            heading = f"{group.name}, {count(len(group.members), 'run')}"
            columns[heading] = [_with_interval(*pair) for pair in zip(*mean_interval(values), strict=True)]
    if not columns:
        return ""
    rows = [
        [str(layer + 1), *(cells[layer] if layer < len(cells) else "" for cells in columns.values())]
        for layer in range(max(map(len, columns.values())))
    ]
    return table(
        f"{name.capitalize()} by layer: mean and 95 % interval over the runs of a group", ["layer", *columns], rows
    )


def runs_table(names: Sequence[str], pages: Sequence[RunPage], records: Sequence[LayerRecord]) -> str:
    """One line a run."""
    rows = [
        [
            name,
            seed_of(page.config),
            str(record.epoch),
            f"{record.samples:,}",
            *(worth(record).values() or ("", "")),
            "" if record.effective_depth is None else str(record.effective_depth.layer),
            "" if record.saturated_early is None else f"{record.saturated_early:.1%}",
            "" if record.mean_saturation_layer is None else f"{record.mean_saturation_layer:.2f}",
        ]
        for name, page, record in zip(names, pages, records, strict=True)
    ]
    headings = ["run", "seed", "epoch", "samples", "last layer", "best layer", "effective depth", "saturated early"]
    return table("The runs, each at the epoch that is compared", [*headings, "mean saturation layer"], rows)


def comparison_notices(groups: Sequence[Group], pages: Sequence[RunPage], records: Sequence[LayerRecord]) -> list[str]:
    """Where runs that are put together differ in more than their seed, or a measure was not computed alike."""
    reasons = {group.name: differences([pages[place].config for place in group.members]) for group in groups}
    told = [
        f"The runs of {name} are put together as if they differed in their seed alone, but {' and '.join(why)}."
        for name, why in reasons.items()
        if why
    ]
    for measure in sorted({measure for record in records for measure in record.similarity}):
        ways = {repr(record.options.get(measure)) for record in records if measure in record.similarity}
        if len(ways) > 1:
            told.append(f"{measure} was computed in different ways, its numbers do not compare.")
    return told


def _drawn_group(group: Group, records: list[LayerRecord]) -> dict[str, Any]:
    bands = {}
    for name, values in shared_quantities(records).items():
        mean, half = mean_interval(values)
        bands[name] = {
            "mean": finite(mean.tolist(), 4),
            "low": finite((mean - half).tolist(), 4),
            "high": finite((mean + half).tolist(), 4),
            "limits": limits(name),
        }
    return {"name": group.name, "runs": len(group.members), "layers": group.layers, "quantities": bands}


def _with_interval(mean: float, half: float) -> str:
    return three(mean) if np.isnan(half) else f"{three(mean)} ± {three(half)}"
