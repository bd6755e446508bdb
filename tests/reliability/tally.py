"""What came of the faults of one kind, and the page that tells it."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[1] / "RELIABILITY.md"
AT_ONCE = min(8, os.cpu_count() or 1)
"""Faults side by side where none waits for a clock."""
_HEAD = """# What was broken on purpose, and what was lost

`make test-long` writes this page; `python -m tests.reliability KIND --count N --seed S` repeats one kind of it.
"""


@dataclass
class Tally:
    """The outcomes of one kind of fault."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """How often each good end came, in words: «resumed, bitwise equal»."""
    lost: list[str] = field(default_factory=list)
    """Each bad one, in a line that says what was injected and what came."""

    @property
    def injected(self) -> int:
        return self.outcomes.total() + len(self.lost)


def write_section(page: Path, kind: str, injected: str, tally: Tally, *, seed: int, seconds: float) -> None:
    """Writes what came of one kind into the page, in place of what stood there of it."""
    rows = [f"| {outcome} | {count} |" for outcome, count in tally.outcomes.most_common()]
    rows.append(f"| **lost, wrong or a traceback** | **{len(tally.lost)}** |")
    lines = [f"## {kind.replace('_', ' ').capitalize()}", "", injected, ""]
    lines += [f"{tally.injected:,} injected, seed {seed}, {seconds / 60:.1f} minutes.", ""]
    lines += ["| what came | how often |", "| --- | ---: |", *rows, ""]
    lines += [f"- {each}" for each in tally.lost[:50]] + [""] * bool(tally.lost)
    before = page.read_text() if page.exists() else _HEAD
    head, *sections = re.split(r"^(?=## )", before, flags=re.MULTILINE)
    others = [section for section in sections if section.splitlines()[0] != lines[0]]
    told = sorted([*(section.rstrip("\n") for section in others), "\n".join(lines).rstrip("\n")])
    page.write_text("\n\n".join([head.rstrip("\n"), *told]) + "\n")
