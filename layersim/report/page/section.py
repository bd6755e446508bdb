"""One run's part of the page: what it was, its numbers as a table, its configuration and environment.

All of it can be read without the script, which adds the charts and lets the table follow the slider.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

from layersim.report.configuration import CONFIG_FILE, below, class_of, init_args, read_configuration, seed_of
from layersim.report.drawing.specifications import upper
from layersim.report.environment import environment, read_environment
from layersim.report.exits import ExitReport
from layersim.report.lens import read_lens_record
from layersim.report.quantity import LAYER, single_numbers, three, told
from layersim.report.reading import DamagedFile, read_text
from layersim.report.records import LayerRecord, Stage
from layersim.report.run import Run, load_run, pick_record
from layersim.report.secrets import masked
from layersim.report.table import layer_cells
from layersim.report.tradeoff import exit_summary


@dataclass(frozen=True)
class RunPage:
    """A run's directory, read for the page."""

    run: Run
    config: dict[str, Any]
    """`config.yaml` parsed, and"""
    config_text: str
    """as it is; empty where the run has none."""
    exits: ExitReport | None
    lens: LayerRecord | None
    environment: dict[str, Any] | None
    notices: list[str]
    """What a reader must know of the reading: a line that was lost."""


def read_run(directory: Path) -> RunPage:
    """Reads all that the page shows of a run. What an interruption has cut is left out, and a notice says so."""
    with warnings.catch_warnings(record=True, action="always", category=UserWarning) as warned:
        run = load_run(directory)
    notices, config = [str(warning.message) for warning in warned], directory / CONFIG_FILE
    if not config.is_file():
        notices.append(f"{config} is not there: the page cannot tell how this run was made.")
    text = masked(read_text(config)) if config.is_file() else ""
    exits, lens, recorded = ExitReport.read(directory), read_lens_record(directory), read_environment(directory)
    return RunPage(run, read_configuration(directory), text, exits, lens, recorded, notices)


def read_runs(directories: Iterable[Path], stage: Stage | None = None) -> tuple[list[RunPage], list[str]]:
    """Reads each of these runs once; and a line for each with a damaged file, or without a record of the stage, which
    is left out: where nothing whole is left the damage is raised."""
    pages: list[RunPage] = []
    lines: list[str] = []
    for directory in dict.fromkeys(directory.resolve() for directory in directories):
        try:
            page = read_run(directory)
            if stage is not None:
                pick_record(page.run, stage=stage)
            pages.append(page)
        except DamagedFile as error:
            lines.append(f"{directory.name} is left out: {error}")
            damage = error
    if lines and not pages:
        raise damage
    return pages, lines


def section(number: int, heading: str, page: RunPage, record: LayerRecord) -> str:
    """The run's HTML, at one record."""
    caption, known = f"Epoch {record.epoch}, step {record.step}, {record.samples:,} {record.unit}", ""
    cells = layer_cells(record)
    if (lens := page.lens) is not None:
        known = by_layer(f"{lens.stage}, {lens.samples:,} {lens.unit}", layer_cells(lens)) + _facts(_computed(lens))
    text = f'<pre role="region" tabindex="0" aria-label="file">{escape(page.config_text)}</pre>'
    parts = [
        f'<section class="run" id="run-{number}" aria-labelledby="run-{number}-name">',
        f'<h2 id="run-{number}-name">{escape(heading)}</h2>',
        f'<p class="headline">{escape(headline(record))}</p>',
        notes(page.notices),
        '<div class="panels"></div>',
        _facts(_summary(page, record)),
        '<div class="panels"></div>',
        _folded("Numbers by layer", f'<div class="numbers">{by_layer(caption, cells)}</div>') if cells else "",
        _folded("What each layer knows", known) if known else "",
        _folded("How it was computed", _facts(_computed(record))),
        "" if page.exits is None else _folded("Early exit and parameters", _facts(exit_summary(page.exits))),
        _folded(f"Configuration ({CONFIG_FILE})", text) if page.config_text else "",
        _folded("Environment", _environment(page)),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def headline(record: LayerRecord) -> str:
    """What the page says first: which layer is as good as the last, and what was measured in layers."""
    found = []
    if record.worth is not None and record.layers > 1 and math.isfinite(last := record.values(record.worth)[-1]):
        quantity, name = record.quantities[record.worth], record.quantities[record.worth].name_of(record.worth)
        sign, values = -1 if quantity.better == "lower" else 1, quantity.values
        first = next(place for place, value in enumerate(values) if sign * value >= sign * last)
        if first + 1 < record.layers:
            told_first = f"Layer {first + 1} of {record.layers} is as good as the last"
            found.append(f"{told_first}: {name} {three(values[first])} against {three(last)}.")
        else:
            told_first = f"No layer is as good as the last of {record.layers}"
            found.append(f"{told_first}: {name} {three(last)} against {three(values[-2])} at the one before.")
    shown = [
        f"{each.name_of(name)} {told(each.values, LAYER, record.layers, record.samples)}"
        for name, each in record.quantities.items()
        if not each.axes and each.unit == LAYER and math.isfinite(each.values)
    ]
    return " ".join([*found, upper(f"{', '.join(shown)}.")] if shown else found)


def table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names the rows, in a frame that scrolls sideways, by keyboard too."""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def by_layer(caption: str, columns: Mapping[str, Sequence[str]]) -> str:
    """A row a layer, counted from 1; columns have L cells, some fewer."""
    every = zip_longest(*columns.values(), fillvalue="")
    return table(caption, ["layer", *columns], [[str(layer), *cells] for layer, cells in enumerate(every, start=1)])


def notes(texts: Sequence[str]) -> str:
    """What must not be overlooked; nothing where there is nothing."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="notices" aria-label="Notices">{items}</ul>' if items else ""


def _facts(values: Mapping[str, str]) -> str:
    """Names and what holds for them; those without a value are left out."""
    pairs = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items() if value
    )
    return f'<dl class="facts">{pairs}</dl>'


def _folded(title: str, inner: str) -> str:
    """What opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{inner}</details>"


def _summary(page: RunPage, record: LayerRecord) -> dict[str, str]:
    """What the run was and how it ended, by name; what is not known is empty."""
    model = below(page.config, "model")
    return {
        "objective": _component(model.get("objective")),
        "head": _component(model.get("head")),
        "backbone": _component(model.get("backbone"), "name", "name_or_path", "task"),
        "data": _component(page.config.get("data"), "path", "name"),
        "optimizer": _component(model.get("optimizer"), "lr", "weight_decay"),
        "seed": seed_of(page.config),
        "layers": str(record.layers),
        record.unit: f"{record.samples:,}",
        "could not be read": f"{record.left_out:,}" if record.left_out else "",
        "measured at": f"epoch {record.epoch}, step {record.step:,} ({record.stage})",
        "run": page.run.directory.name,
    } | single_numbers(record.quantities, record.layers, record.samples)


def _computed(record: LayerRecord) -> dict[str, str]:
    """The options of what has axes; other numbers tell them themselves."""
    return {name: quantity.computed for name, quantity in record.quantities.items() if quantity.axes}


def _environment(page: RunPage) -> str:
    """What the run wrote down of its environment, else what is installed as the page is written, marked so."""
    if page.environment is None:
        note = "The run did not record its environment. This is the one in which the page was written:"
        return f"<p>{note}</p>{_facts(environment())}"
    return _facts({str(name): _counted(value) for name, value in page.environment.items()})


def _counted(value: Any) -> str:
    """A value as it is; of several numbers each with its name."""
    if not isinstance(value, dict):
        return str(value)
    shown = {float: ",.3g", int: ","}
    told = ((name.replace("_", " "), each, shown.get(type(each), "")) for name, each in value.items())
    return ", ".join(f"{name} {format(each, form) if form else each}" for name, each, form in told)


def _component(value: Any, *shown: str) -> str:
    """A class and its options as the configuration names them: those in `shown`, or all that are set."""
    written = ", ".join(
        f"{name} {option}"
        for name, option in init_args(value).items()
        if option is not None and (not shown or name in shown)
    )
    return f"{class_of(value)}{f' ({written})' if written else ''}"
