"""What a terminal shows whole, however narrow it is: lines about a table, and runs side by side."""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from textwrap import wrap
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

_HEADING = 14
"""Columns of a heading's line at most, unless the table's columns are wider."""


class Beside(Text):
    """Text above or below a table, broken at the width of the terminal; rich would break it at the table's."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        yield from super().__rich_console__(console, options.update(width=console.width))


def plain_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str | tuple[str, str]]],
    *,
    title: str = "",
    caption: str = "",
    left: Collection[str] = (),
    **look: Any,
) -> Table:
    """Rows between a title and a caption, of cells, some with a style; the columns in `left` begin at their left, and
    all have this look."""
    table = Table(
        title=Beside(title),
        caption=Beside(caption),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in headings:
        table.add_column(Text(name), justify="left" if name in left else "right", vertical="bottom", **look)
    for row in rows:
        table.add_row(*map(Text.assemble, row))
    return table


def table_by_layer(title: str, caption: str, columns: Iterable[tuple[str, Sequence[str]]]) -> Table:
    """A row a layer, counted from 1; each column a heading and L cells, some fewer."""
    headings, cells = zip(*columns, strict=True)
    rows = ((str(layer), *row) for layer, row in enumerate(zip_longest(*cells, fillvalue=""), start=1))
    return plain_table(["layer", *headings], rows, title=title, caption=caption)


@dataclass(frozen=True)
class SideBySide:
    """Columns, in as many tables below each other as the width asks for, so that none is cut off."""

    corner: str
    """Above the rows' names."""
    headings: Sequence[str]
    """Of the columns."""
    rows: Mapping[str, Sequence[str]]
    """By name, a cell for each column."""
    least: int
    """Characters of a column."""
    last_of_first: str | None = None
    """The row below which the rest stands apart."""
    note: str = ""
    """Below the last table."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def drawn(stop: int) -> int:  # which is more than rich measures
            lines = Segment.split_lines(console.render(self._table(start, stop), options))
            return max(map(Segment.get_line_length, lines))

        start, end = 0, len(self.headings)
        while start < end:
            stop = start + 1 + bisect_right(range(start + 2, end + 1), options.max_width, key=drawn)
            yield self._table(start, stop)
            start = stop
        if self.note:
            yield Beside(self.note)

    def _table(self, start: int, stop: int) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(self.corner, vertical="bottom")
        for heading in self.headings[start:stop]:
            size = max(self.least, _HEADING)
            lines = (wrap(line, size, break_long_words=False) or [line] for line in heading.split("\n"))
            broken = [part for line in lines for part in line]
            shown = Text("\n".join(broken), overflow="fold")
            least = max(self.least, min(_HEADING, max(map(len, broken))))  # where rich has no room, it breaks words
            table.add_column(shown, justify="right", vertical="bottom", min_width=least)
        for name, cells in self.rows.items():
            table.add_row(*map(Text, [name, *cells[start:stop]]), end_section=name == self.last_of_first)
        return table


def gathered(columns: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Rows of all names that any column has, empty where a column lacks it."""
    return {name: [column.get(name, "") for column in columns] for name in dict.fromkeys(n for c in columns for n in c)}
