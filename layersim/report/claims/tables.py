"""Verdicts as a table on the terminal and as markdown."""

import re
from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.table import Table
from rich.text import Text

from layersim.report.claims.arms import Arms
from layersim.report.claims.verdicts import Verdict
from layersim.report.terminal import Beside

HOW = (
    "Each claim is judged by itself, at 95 %; no correction is made for how many there are. Intervals over seeds are "
    "Student's, on these validation samples, or on others too where seeds draw the split; of a single run they are "
    "over its samples."
)
_STYLES = {"holds": "green", "does not hold": "red", "cannot tell": "dim"}


def verdicts_table(arms: Arms, verdicts: Sequence[Verdict]) -> Table:
    """Below each claim a row a verdict; above, what was judged."""
    title = Beside("\n".join([arms.task, *arms.told]))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("claim, of", "number", "95 % interval", "claimed", "verdict"):
        table.add_column(name, justify="left" if name in ("claim, of", "verdict") else "right", no_wrap=True)
    for name, of_claim in groupby(verdicts, lambda verdict: verdict.claim.name):
        table.add_row(name)
        for verdict in of_claim:
            answer = Text(verdict.answer, style=_STYLES[verdict.answer])
            table.add_row(f"  {verdict.of}", *_numbers(verdict), answer)
    return table


def remarks(verdicts: Sequence[Verdict]) -> list[str]:
    """Why claims are open, and what is to be known of the others; a line for each reason, with its claims."""
    names: dict[tuple[str, str], dict[str, None]] = {}
    for verdict in verdicts:
        start, why, found = "Of", verdict.why, verdict.estimate
        if verdict.answer == "cannot tell":
            start = "Cannot tell"
            if found is not None and found.low is not None:
                why = f"the interval reaches both sides of the limit ({found.basis})"
        if why:
            names.setdefault((start, why), {})[verdict.claim.name] = None
    return [f"{start} {', '.join(claims)}: {why}." for (start, why), claims in names.items()]


def markdown(judged: Sequence[tuple[Arms, Sequence[Verdict]]]) -> str:
    """All verdicts, each with its sentence, its place in the paper, and the published number beside ours."""
    lines = ["# The paper's claims on these runs", "", f"*Tracing Representation Progression*, arXiv 2406.14479. {HOW}"]
    for arms, verdicts in judged:
        lines += ["", f"## {_plain(arms.task)}", "", *(f"- {_plain(told)}" for told in arms.told), ""]
        lines.append("| claim | of | number | 95 % interval | claimed | verdict | over | paper |")
        lines.append("| --- | --- | ---: | ---: | ---: | --- | --- | --- |")
        for verdict in verdicts:
            over = "; ".join(filter(None, [verdict.estimate.basis if verdict.estimate else "", verdict.why]))
            claim = verdict.claim
            cells = [claim.name, _plain(verdict.of), *_numbers(verdict), verdict.answer, _plain(over), claim.published]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## What is claimed", ""]
    claims = {verdict.claim.name: verdict.claim for _, verdicts in judged for verdict in verdicts}
    lines += [f"- **{name}** ({of.source}). {of.says}. Number: {of.number}." for name, of in claims.items()]
    if notes := [note for arms, _ in judged for note in arms.notes]:
        lines += ["", "## How runs were put together", "", *(f"- {_plain(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """What users and their files name, so that markdown shows it as it is, on one line."""
    return re.sub(r"([\\`*_~$&#\[\]<>|])", r"\\\1", " ".join(text.split()))


def _numbers(verdict: Verdict) -> tuple[str, str, str]:
    claimed = f"{verdict.claim.claimed[0]} {verdict.limit:g}"
    found = verdict.estimate
    if found is None:
        return "", "", claimed
    interval = "" if found.low is None or found.high is None else f"{found.low:.3f} … {found.high:.3f}"
    return f"{found.value:.3f}", interval, claimed
