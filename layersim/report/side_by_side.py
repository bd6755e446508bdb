"""Runs side by side on a terminal, however narrow it is and however many they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class SideBySide:
    """Runs as columns, in as many tables below each other as the width asks for, so that none is cut off."""

    names: Sequence[str]
    table_of: Callable[[Sequence[str]], Table]
    """Of some of the names, in their order."""
    note: str = ""
    """Below the last table."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown: list[str] = []
        for name in self.names:
            if shown and self._least_width([*shown, name], console, options) > options.max_width:
                yield self.table_of(shown)
                shown = []
            shown.append(name)
        yield self.table_of(shown)
        if self.note:
            yield Text(self.note)

    def _least_width(self, names: Sequence[str], console: Console, options: ConsoleOptions) -> int:
        unbounded = options.update(width=100_000)  # else rich says that any table fits
        return console.measure(self.table_of(names), options=unbounded).minimum
