"""`lens.json`: what is readable, recoverable and known at each layer, and the gaps between. Letter: L layers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from rich.console import Group

from layersim.report.drawing.pictures import Picture, beside, curves
from layersim.report.drawing.specifications import upper
from layersim.report.json_report import MOST_BYTES, write_report
from layersim.report.quantity import RATIO, Quantity, curve, perplexity, three
from layersim.report.reading import damaging, read_text
from layersim.report.records import LayerRecord
from layersim.report.terminal import Beside, SideBySide

LENS_FILE = "lens.json"
NAMES = READABLE, RECOVERABLE, KNOWN, SEPARATE, CHANCE = "readable", "recoverable", "known", "head each", "chance"
"""By the shared head; by a tuned lens; by a linear probe; by a head for each layer; by an answer that is always the
same."""
GAPS = ((RECOVERABLE, READABLE), (KNOWN, RECOVERABLE))


def lens_quantities(
    accuracies: Mapping[str, Sequence[float]],
    losses: Mapping[str, Sequence[float]],
    options: Mapping[str, Mapping[str, Any]],
    intervals: Mapping[tuple[str, str], dict[str, Any]] = MappingProxyType({}),
    *,
    tokens: bool = False,
) -> dict[str, Quantity]:
    """Accuracies and losses (cross-entropies in nats, told as perplexities of `tokens`), L each by who reads, as a
    record has them, with how each was made; and the gaps: of losses, in nats, what the second has more. `intervals` are
    those of gaps between accuracies, by both names."""
    found = {}
    told: dict[str, Any] = {"unit": RATIO, "range": (1, None)} if tokens else {"unit": "nats", "range": (0, None)}
    how = {who: dict(options.get(who, {})) for who in {*accuracies, *losses}}
    for who, values in accuracies.items():
        found[who] = curve([*values], label=f"accuracy: {who}", range=(0, 1), better="higher", options=how[who])
    for who, values in losses.items():
        shown, name = (perplexity(values), "perplexity") if tokens else ([*values], "loss")
        found[f"{who}_{name}"] = curve(shown, label=f"{name}: {who}", better="lower", options=how[who], **told)
    for more_of, less_of in GAPS:
        if {more_of, less_of} <= accuracies.keys():
            won = np.subtract(accuracies[more_of], accuracies[less_of]).tolist()
            saved = np.subtract(losses[less_of], losses[more_of]).tolist()
            gap = f"{more_of} − {less_of}"
            within = intervals.get((more_of, less_of))
            found[f"{more_of}_{less_of}_gap"] = curve(won, label=f"accuracy gap: {gap}", range=(-1, 1), interval=within)
            found[f"{more_of}_{less_of}_loss_gap"] = curve(saved, label=f"loss gap: {gap}", unit="nats")
    return found


def write_lens_record(directory: Path, record: LayerRecord) -> Path:
    """Writes the record into a directory, a key a line, and gives the file's path."""
    return write_report(directory / LENS_FILE, json.loads(record.to_line()))


def read_lens_record(directory: Path) -> LayerRecord | None:
    """The record in a run's directory, None where there is none."""
    if not (path := directory / LENS_FILE).exists():
        return None
    with damaging(f"{path} is damaged; run `layersim lens` again."):
        return LayerRecord.from_line(read_text(path, MOST_BYTES))


def lens_panels(record: LayerRecord) -> dict[str, dict[str, Quantity]]:
    """What belongs in one picture, by its title: quantities by who reads."""
    found: dict[str, dict[str, Quantity]] = {}
    for name, quantity in record.quantities.items():
        title, _, who = quantity.name_of(name).rpartition(": ")
        found.setdefault(title, {})[who] = quantity
    return found


def lens_table(record: LayerRecord) -> Group:
    """A row a layer and a column for each who reads, and for each gap: of accuracies, and of losses or perplexities."""
    panels = lens_panels(record)
    loss = "perplexity" if "perplexity" in panels else "loss"
    told: list[Beside | SideBySide] = []
    for heading, titles in {
        f"Accuracy at each layer, on {record.samples:,} {record.unit}": ("accuracy", "accuracy gap"),
        "Perplexity, gaps in nats" if loss == "perplexity" else "Loss, in nats": (loss, "loss gap"),
    }.items():
        shown = {who.replace(" − ", "\n− "): one for title in titles for who, one in panels.get(title, {}).items()}
        rows = {str(at + 1): [three(one.values[at]) for one in shown.values()] for at in range(record.layers)}
        told += [Beside(heading), SideBySide("layer", [*shown], rows, least=len(max(NAMES, key=len)))]
    return Group(*told)


def lens_figure(record: LayerRecord) -> Picture:
    """A panel each of accuracies, losses and gaps by layer, a curve for each who reads."""
    drawn = [
        curves(shown, f"{upper(title)} by layer", width=390, height=220, series=[*shown])
        for title, shown in lens_panels(record).items()
    ]
    return beside(drawn, 2)
