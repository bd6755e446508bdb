"""Runs side by side on the page: groups over seeds as mean and 95 % interval, and each run's own line."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from layersim.report.configuration import seed_of
from layersim.report.numbers import three
from layersim.report.page.markup import count, table, worth
from layersim.report.page.run_page import RunPage, finite
from layersim.report.page.seeds import Group, differences, mean_interval, shared_quantities
from layersim.report.quantity import curves, single_numbers
from layersim.report.records import LayerRecord, shared_name
from layersim.report.table import options_note


def drawn_groups(groups: Sequence[Group], records: Sequence[LayerRecord]) -> list[dict[str, Any]]:
    """The groups as the page's script draws them: by quantity, the mean at each layer, its interval's ends, and what it
    can be."""
    return [_drawn_group(group, [records[place] for place in group.members]) for group in groups]


def interval_table(groups: Sequence[Group], records: Sequence[LayerRecord]) -> str:
    """Accuracy by layer, of language models perplexity, as a table: mean ± half the width of the 95 % interval."""
    columns = {}
    worth = shared_name(records, "worth")
    name = next((record.quantities[worth].name_of(worth) for record in records if worth in record.quantities), "")
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
    numbers = [single_numbers(record.quantities, record.layers, record.samples) for record in records]
    headings = list(dict.fromkeys(heading for told in numbers for heading in told))
    rows = [
        [
            name,
            seed_of(page.config),
            str(record.epoch),
            f"{record.samples:,}",
            *(worth(record).values() or ("", "")),
            *(numbers[place].get(heading, "") for heading in headings),
        ]
        for place, (name, page, record) in enumerate(zip(names, pages, records, strict=True))
    ]
    named = ["run", "seed", "epoch", "samples", "last layer", "best layer"]
    return table("The runs, each at the epoch that is compared", [*named, *headings], rows)


def comparison_notices(groups: Sequence[Group], pages: Sequence[RunPage], records: Sequence[LayerRecord]) -> list[str]:
    """Where runs that are put together differ in more than their seed, or a measure was not computed alike."""
    reasons = {group.name: differences([pages[place].config for place in group.members]) for group in groups}
    told = [
        f"The runs of {name} are put together as if they differed in their seed alone, but {' and '.join(why)}."
        for name, why in reasons.items()
        if why
    ]
    every = dict(zip(map(str, range(len(records))), records, strict=True))
    names = sorted({name for record in records for name in record.quantities})
    notes = [options_note(every, name) for name in names]
    return told + [f"{note.partition(':')[0]}." for note in notes if "\n" in note]


def _drawn_group(group: Group, records: list[LayerRecord]) -> dict[str, Any]:
    bands, shown = {}, curves(records[0].quantities)
    for name, values in shared_quantities(records).items():
        mean, half = mean_interval(values)
        bands[name] = {
            "mean": finite(mean.tolist(), 4),
            "low": finite((mean - half).tolist(), 4),
            "high": finite((mean + half).tolist(), 4),
            "limits": list(shown[name].range),
        }
    return {"name": group.name, "runs": len(group.members), "layers": group.layers, "quantities": bands}


def _with_interval(mean: float, half: float) -> str:
    return three(mean) if np.isnan(half) else f"{three(mean)} ± {three(half)}"
