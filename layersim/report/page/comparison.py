"""Runs side by side on the page: groups over seeds as mean and 95 % interval, each run's heat maps, exits and seconds.

Letters: R runs, L layers.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats  # type: ignore[import-untyped]

from layersim.report.configuration import flat, seed_of
from layersim.report.drawing.specifications import COUNTED, upper
from layersim.report.exits import ExitReport
from layersim.report.lens import lens_panels
from layersim.report.page.charts import Chart, charts, static_chart
from layersim.report.page.section import RunPage, by_layer, table
from layersim.report.quantity import Quantity, curves, single_numbers, three
from layersim.report.records import LayerRecord, shared_name
from layersim.report.table import APART
from layersim.report.tradeoff import calibration_curves, tradeoffs

CONFIDENCE = 0.95

_SEED_IN_NAME = re.compile(r"[-_./]?seed[-_=]?\d+", re.IGNORECASE)
_SAYS_NOTHING = {"experiment", "seed_everything", "data.init_args.seed", "ckpt_path", "trainer.default_root_dir"}
"""Keys of a configuration in which runs of one group may differ: names, places, and what draws weights and split."""


@dataclass(frozen=True)
class Group:
    """Runs of one experiment and of one depth, which differ in their seed alone: what is put together."""

    name: str
    """The experiment, less its seed."""
    members: list[int]
    """The runs' places in the list that was grouped."""

    @property
    def title(self) -> str:
        """Its name, and of how many runs it is where it is of several."""
        return self.name if len(self.members) == 1 else f"{self.name}, {len(self.members)} runs"

    def curves(self, records: Sequence[LayerRecord]) -> dict[str, Quantity]:
        """Each curve that all of its runs have: the mean (of counts, that of their shares), and, of two runs or more,
        its interval."""
        own = [records[place] for place in self.members]
        each, found = [curves(record.quantities) for record in own], {}
        for name, first in each[0].items():
            if all(name in one for one in each):
                of = [record.samples if first.unit in COUNTED else 1 for record in own]
                mean, half = mean_interval([np.divide(one[name].values, n) for one, n in zip(each, of, strict=True)])
                ends = {"confidence": CONFIDENCE, "low": (mean - half).tolist(), "high": (mean + half).tolist()}
                unit = "share" if first.unit in COUNTED else first.unit
                interval = ends if len(each) > 1 else None
                found[name] = replace(first, values=mean.tolist(), unit=unit, interval=interval, null=None)
        return found


def mean_interval(values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean over runs, (L,), and half the width of its 95 % interval, (L,), of (R, L) values.

    Student's t interval, which takes runs as independent and normal. One run has no interval: NaN.
    """
    numbers = np.asarray(values, dtype=np.float64)
    mean = numbers.mean(axis=0)
    if len(numbers) == 1:
        return mean, np.full_like(mean, np.nan)
    return mean, stats.sem(numbers) * stats.t.ppf((1 + CONFIDENCE) / 2, len(numbers) - 1)


def group_runs(names: Sequence[str], records: Sequence[LayerRecord]) -> list[Group]:
    """Runs whose experiments have one name apart from a seed (`digits/aligned-seed3`), in order of appearance.

    Models of different depths share no layers, so the same experiment with another L is a group of its own.
    """
    members: dict[tuple[str, int], list[int]] = {}
    for place, (name, record) in enumerate(zip(names, records, strict=True)):
        members.setdefault((_SEED_IN_NAME.sub("", name) or name, record.layers), []).append(place)
    counted = [name for name, _ in members]
    return [
        Group(name if counted.count(name) == 1 else f"{name} ({layers} layers)", places)
        for (name, layers), places in members.items()
    ]


def differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What else than the seed differs between the configurations of runs that are put together, and a seed that two
    runs share: reasons why the interval is not one over seeds. Empty where there are none."""
    settings = [flat(config) for config in configs]
    keys = sorted({key for config in settings for key in config} - _SAYS_NOTHING)
    told = [key for key in keys if len({repr(config.get(key)) for config in settings}) > 1]
    reasons = [f"their configurations differ in {', '.join(told)}"] if told else []
    seeds = [seed for config in configs if (seed := seed_of(config))]
    if shared := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        reasons.append(f"more than one has the seed {', '.join(shared)}")
    return reasons


def worth_of_groups(groups: Sequence[Group], records: Sequence[LayerRecord]) -> tuple[str, dict[str, Quantity]]:
    """The curve that runs are told apart by: its name, and each group's, by the group's title."""
    key = shared_name(records, "worth")
    name = next((record.quantities[key].name_of(key) for record in records if key in record.quantities), "")
    return name, {group.title: found[key] for group in groups if key in (found := group.curves(records))}


def compared_headline(name: str, groups: Mapping[str, Quantity]) -> str:
    """What `worth_of_groups` gave at half of the layers and at the last, the best group first, NaN last."""
    parts, sign = [], 1 if any(one.better == "lower" for one in groups.values()) else -1
    for where, portion in (("half of the layers", 2), ("the last", 1)):
        values = {group: one.values[max(len(one.values) // portion, 1) - 1] for group, one in groups.items()}
        best = sorted(values, key=lambda group: math.inf if math.isnan(values[group]) else sign * values[group])
        parts.append(f"at {where} {', '.join(f'{three(values[group])} ({group})' for group in best)}")
    return f"{upper(name)} {'; '.join(parts)}." if groups else ""


def compared(
    names: Sequence[str], pages: Sequence[RunPage], records: Sequence[LayerRecord]
) -> tuple[str, list[Chart], list[str]]:
    """The comparison as HTML, the charts that no slider moves, and what must be known of it."""
    exits = {name: page.exits for name, page in zip(names, pages, strict=True) if page.exits is not None}
    lenses = {name: page.lens for name, page in zip(names, pages, strict=True) if page.lens is not None}
    others = exit_charts(exits) + lens_charts(lenses)
    if len(pages) == 1:
        return "", others, []
    groups = group_runs([page.run.name for page in pages], records)
    worth = worth_of_groups(groups, records)
    parts = [
        '<section id="comparison" aria-labelledby="comparison-name">',
        '<h2 id="comparison-name">Comparison</h2>',
        f'<p class="headline">{escape(compared_headline(*worth))}</p>',
        '<div class="panels"></div>',
        '<div class="panels"></div>',
        interval_table(*worth),
        runs_table(names, pages, records),
        "</section>",
    ]
    drawn = compared_charts(groups, names, records, others)
    return "\n".join(parts), drawn, comparison_notices(groups, pages, records)


def compared_charts(
    groups: Sequence[Group], names: Sequence[str], records: Sequence[LayerRecord], others: Sequence[Chart]
) -> list[Chart]:
    """What runs tell side by side: curves by layer of each group, each run's heat maps, and beside them others."""
    drawn = {group.title: group.curves(records) for group in groups}
    large = shared_name(records, "worth"), f"{shared_name(records, 'matrix')} to last"
    whole = {f"{name} to last": one.name_of(name) for record in records for name, one in record.matrices.items()}
    made = [*others]
    for name in dict.fromkeys(name for found in drawn.values() for name in found):
        shown = {group: found[name] for group, found in drawn.items() if name in found}
        label = next(iter(shown.values())).label
        title = f"{whole[name]} to the last layer" if name in whole else f"{label} by layer"
        if len(shown) > 1 or len(groups) == 1:
            made.append(static_chart(title, shown, large=name in large))
    maps = []
    for chart in charts(records):
        having = [place for place, one in enumerate(records) if chart["keys"].keys() <= one.quantities.keys()]
        if "along" in chart and len(having) > 1:  # another axis than layers: a series a run
            (key,) = chart["keys"]
            shown = {names[place]: records[place].quantities[key] for place in having}
            made.append(static_chart(chart["title"], shown, along=chart["along"]))
        for place in having if "spans" in chart and len(having) > 1 else ():
            own = {"title": f"{chart['title']}: {names[place]}", "run": place, "half": len(having) in (2, 4)}
            maps.append(chart | own | {"large": False})
    return [*(one for one in made if one["large"]), *maps, *(one for one in made if not one["large"])]


def exit_charts(reports: Mapping[str, ExitReport]) -> list[Chart]:
    """Accuracy against mean exit layer and, where it was measured, against time, a series a run; large marks are the
    thresholds that were chosen. Then each layer's calibration."""
    calibrated = calibration_curves(reports) if reports else {}
    return [
        static_chart(f"calibrated exits: accuracy by {along}", shown, along=along, extra=chosen)
        for along, (shown, chosen) in (tradeoffs(reports) if reports else {}).items()
    ] + [static_chart(f"exits: {label} by layer", shown) for label, shown in calibrated.items()]


def lens_charts(lenses: Mapping[str, LayerRecord]) -> list[Chart]:
    """What each run's layers say, a series for each who reads; the run is named where there are several."""
    return [
        static_chart(f"{title} by layer{f': {name}' if len(lenses) > 1 else ''}", shown)
        for name, record in lenses.items()
        for title, shown in lens_panels(record).items()
    ]


def interval_table(name: str, groups: Mapping[str, Quantity]) -> str:
    """What `worth_of_groups` gave as a table: mean ± half the width of the 95 % interval."""
    columns = {}
    for group, one in groups.items():
        halves = [""] * len(one.values)
        if one.interval is not None:
            halves = [f" ± {three(high - mean)}" for mean, high in zip(one.values, one.interval["high"], strict=True)]
        columns[group] = [three(mean) + half for mean, half in zip(one.values, halves, strict=True)]
    caption = f"{upper(name)} by layer: mean and 95 % interval over the runs of a group"
    return by_layer(caption, columns) if columns else ""


def runs_table(names: Sequence[str], pages: Sequence[RunPage], records: Sequence[LayerRecord]) -> str:
    """One line a run, with the last layer of the curve that runs are told apart by."""
    worth, told = shared_name(records, "worth"), []
    for page, record in zip(pages, records, strict=True):
        one = {"seed": seed_of(page.config), "epoch": str(record.epoch), "samples": f"{record.samples:,}"}
        if shown := curves(record.quantities).get(worth):
            one[f"{shown.label}, last layer"] = three(shown.values[-1])
        told.append(one | single_numbers(record.quantities, record.layers, record.samples))
    headings = list(dict.fromkeys(heading for one in told for heading in one))
    rows = [[name, *(one.get(heading, "") for heading in headings)] for name, one in zip(names, told, strict=True)]
    return table("The runs, each at the epoch that is compared", ["run", *headings], rows)


def comparison_notices(groups: Sequence[Group], pages: Sequence[RunPage], records: Sequence[LayerRecord]) -> list[str]:
    """Where runs that are put together differ in more than their seed, or a measure was not computed alike."""
    reasons = {group.name: differences([pages[place].config for place in group.members]) for group in groups}
    told = [
        f"The runs of {name} are put together as if they differed in their seed alone, but {' and '.join(why)}."
        for name, why in reasons.items()
        if why
    ]
    names = sorted({name for record in records for name in record.quantities})
    ways = {name: [one.quantities[name].options for one in records if name in one.quantities] for name in names}
    return told + [f"{name} {APART}." for name, each in ways.items() if any(one != each[0] for one in each)]
