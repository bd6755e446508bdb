"""Findings as a table on the terminal and as markdown."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from layersim.report.claims.claim import Finding
from layersim.report.claims.studies import Arm, Study
from layersim.report.terminal import Beside

HOW = (
    "Each claim is judged by itself, at 95 %; no correction is made for how many there are. Intervals over seeds are "
    "Student's, on these validation samples, or on others too where seeds draw the split; of a single run they are "
    "over its samples."
)
_STYLES = {"holds": "green", "does not hold": "red", "cannot tell": "dim"}


def findings_table(study: Study, findings: Sequence[Finding]) -> Table:
    """A row a finding; above, a letter for each way to train."""
    names = [arm.name for arm in study.arms.values()]
    letters = {name: f"{chr(ord('A') + number % 26)}{number // 26 or ''}" for number, name in enumerate(names)}
    title = "\n".join([study_line(study), "", *(f"{letter}  {name}" for name, letter in letters.items())])
    table = Table(title=Beside(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.collapse_padding = True
    for name in ("claim", "of"):
        table.add_column(name, no_wrap=True)
    for name in ("number", "95 % interval", "claimed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    shown = ""
    for finding in findings:
        name = "" if finding.claim.name == shown else finding.claim.name
        shown = finding.claim.name
        verdict = Text(finding.verdict, style=_STYLES[finding.verdict])
        of = " less ".join(letters[name] for name in finding.arms)
        table.add_row(Text(name), of, *_numbers(finding), verdict)
    return table


def remarks(findings: Sequence[Finding]) -> list[str]:
    """Why claims are open, and what is to be known of the others; a line for each reason, with its claims."""
    names: dict[tuple[str, str], dict[str, None]] = {}
    for finding in findings:
        key = ("Cannot tell", _reason(finding)) if finding.verdict == "cannot tell" else ("Of", finding.why)
        if key[1]:
            names.setdefault(key, {})[finding.claim.name] = None
    return [f"{start} {', '.join(claims)}: {why}." for (start, why), claims in names.items()]


def markdown(studies: Sequence[tuple[Study, Sequence[Finding]]], notes: Sequence[str]) -> str:
    """All findings, each with its sentence, its place in the paper, and the published number beside ours."""
    lines = ["# The paper's claims on these runs", "", f"*Tracing Representation Progression*, arXiv 2406.14479. {HOW}"]
    for study, findings in studies:
        lines += ["", f"## {study_line(study)}", ""]
        lines += [f"- {arm.name}: seeds {_seeds(arm)}" for arm in study.arms.values()]
        lines += ["", "| claim | of | number | 95 % interval | claimed | verdict | over | paper |"]
        lines.append("| --- | --- | ---: | ---: | ---: | --- | --- | --- |")
        for finding in findings:
            basis = finding.estimate.basis if finding.estimate else ""
            over = "; ".join(filter(None, [basis, finding.why]))
            claim = finding.claim
            cells = [claim.name, finding.of, *_numbers(finding), finding.verdict, over, claim.published]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## What is claimed", ""]
    claims = dict.fromkeys(finding.claim.name for _, findings in studies for finding in findings)
    told = {finding.claim.name: finding.claim for _, findings in studies for finding in findings}
    lines += [f"- **{name}** ({told[name].source}). {told[name].says}. Number: {told[name].number}." for name in claims]
    if notes:
        lines += ["", "## How runs were put together", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def study_line(study: Study) -> str:
    """What the study is of."""
    runs = sum(len(arm.runs) for arm in study.arms.values())
    return f"{study.name} (runs: {runs}, ways to train: {len(study.arms)})"


def _seeds(arm: Arm) -> str:
    return ", ".join(arm.runs)


def _numbers(finding: Finding) -> tuple[str, str, str]:
    sign = "≤" if finding.claim.side == "at most" else ">"
    claimed = f"{sign} {finding.limit:g}"
    measured = finding.estimate
    if measured is None:
        return "", "", claimed
    interval = "" if measured.low is None or measured.high is None else f"{measured.low:.3f} … {measured.high:.3f}"
    return f"{measured.value:.3f}", interval, claimed


def _reason(finding: Finding) -> str:
    measured = finding.estimate
    if measured is None or measured.low is None:
        return finding.why
    return f"the interval reaches both sides of the limit ({measured.basis})"
