"""Pieces of HTML. Every text is escaped here, whoever named it."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from layersim.report.numbers import three
from layersim.report.records import LayerRecord


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


def facts(values: Mapping[str, str]) -> str:
    """Names and what holds for them; those without a value are left out."""
    pairs = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items() if value
    )
    return f'<dl class="facts">{pairs}</dl>'


def folded(title: str, inner: str) -> str:
    """What opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{inner}</details>"


def preformatted(text: str) -> str:
    """Text as it stands in a file."""
    return f'<pre role="region" tabindex="0" aria-label="file">{escape(text)}</pre>'


def notes(texts: Sequence[str]) -> str:
    """What must not be overlooked; nothing where there is nothing."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="notices" aria-label="Notices">{items}</ul>' if items else ""


def count(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def worth(record: LayerRecord) -> dict[str, str]:
    """What the last layer and the best one are worth, by name, in what runs are told apart by; of equals the first is
    the best. Empty where no such thing was recorded."""
    if record.worth is None:
        return {}
    quantity = record.quantities[record.worth]
    values, name = quantity.values, quantity.name_of(record.worth)
    if np.isnan(values).all():
        best = "nan"
    else:
        place = int(np.nanargmin(values) if quantity.better == "lower" else np.nanargmax(values))
        best = f"{three(values[place])} at layer {place + 1}"
    return {f"Last layer's {name}": three(values[-1]), f"Best layer's {name}": best}
