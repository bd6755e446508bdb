"""What each claim comes to on runs: a number, its interval and an answer; and these as a table and as markdown."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Literal

from rich.table import Table

from layersim.errors import UserError, meant
from layersim.report.claims.arms import Arms
from layersim.report.claims.claim import LIMITS, Claim, Limits
from layersim.report.claims.intervals import Estimate, Measured, NotMeasured, difference, estimate
from layersim.report.claims.paper import CLAIMS, absolute_depth
from layersim.report.terminal import plain_table

Answer = Literal["holds", "does not hold", "cannot tell"]


@dataclass(frozen=True)
class Verdict:
    """What one claim comes to for one arm, or for one less another."""

    claim: Claim
    arms: tuple[str, ...]
    """One, or the one that is reduced by the other; empty where there is no run of one."""
    limit: float
    answer: Answer
    estimate: Estimate | None
    """None where nothing could be measured."""
    why: str
    """Of a claim that is open, why; else what is to be known of the number."""

    @property
    def of(self) -> str:
        """The arms in words."""
        return " less ".join(self.arms)


def judge(arms: Arms, limits: Limits | None = None) -> list[Verdict]:
    """Every claim on each arm, or pair of arms, that it speaks of; one open verdict where there is none.

    Args:
        arms: see `read_arms`.
        limits: what is not the default of `LIMITS`; with `absolute-epsilon` the paper's depth is judged too.

    Raises:
        UserError: a limit that there is not.
    """
    chosen, known = LIMITS | dict(limits or {}), (*LIMITS, "absolute-epsilon")
    for name in chosen.keys() - known:
        raise UserError(f"Expected limits among {', '.join(known)}, but got {name!r}.{meant(name, known)}")
    claims = (*CLAIMS, absolute_depth) if "absolute-epsilon" in chosen else CLAIMS
    return [verdict for claim in claims for verdict in _verdicts(claim, arms, chosen)]


def _verdicts(claim: Claim, arms: Arms, limits: Limits) -> Iterator[Verdict]:
    limit = claim.claimed[1] if isinstance(claim.claimed[1], float) else limits[claim.claimed[1]]
    given = [[arm for arm in sides if arm in arms.runs] for sides in claim.arms]
    for names in product(*given):
        yield _verdict(claim, arms, names, limit, limits)
    if not all(given):
        absent = [" or ".join(sides) for sides, there in zip(claim.arms, given, strict=True) if not there]
        yield Verdict(claim, (), limit, "cannot tell", None, f"no run of {' and none of '.join(absent)}")


def _verdict(claim: Claim, arms: Arms, names: tuple[str, ...], limit: float, limits: Limits) -> Verdict:
    runs = [arms.runs[name] for name in names]
    try:
        told = [_measured(claim, arms, name, limits) for name in names]
        if claim.check is not None:
            claim.check([of[seed] for of, measured in zip(runs, told, strict=True) for seed in measured], limits)
    except NotMeasured as missing:
        return Verdict(claim, names, limit, "cannot tell", None, str(missing))
    found = estimate(list(told[0].values())) if len(told) == 1 else difference(told[0], told[1])
    absent, every = (sum(map(len, each)) for each in (told, runs))
    without = f"{every - absent} of {every} runs did not measure it" if absent < every else ""
    why = "; ".join(filter(None, [found.why, without]))
    return Verdict(claim, names, limit, _answer(claim, found, limit), found, why)


def _measured(claim: Claim, arms: Arms, name: str, limits: Limits) -> Mapping[str, Measured]:
    """By seed, of those runs that tell it; NotMeasured where none does."""
    found, missing = {}, NotMeasured()
    for seed, run in arms.runs[name].items():
        try:
            found[seed] = claim.read(run, limits)
        except NotMeasured as reason:
            missing = reason
    if not found:
        raise missing
    return found


def _answer(claim: Claim, measured: Estimate, limit: float) -> Answer:
    if measured.low is None or measured.high is None:
        return "cannot tell"
    above, below = measured.low > limit, measured.high <= limit
    if not (above or below):  # within, or NaN
        return "cannot tell"
    return "holds" if above == (claim.claimed[0] == ">") else "does not hold"


HOW = (
    "Each claim is judged by itself, at 95 %; no correction is made for how many there are. Intervals over seeds are "
    "Student's, on these validation samples, or on others too where seeds draw the split; of a single run they are "
    "over its samples."
)
_STYLES = {"holds": "green", "does not hold": "red", "cannot tell": "dim"}


def verdicts_table(arms: Arms, verdicts: Sequence[Verdict]) -> Table:
    """Below each claim a row a verdict; above, what was judged."""
    rows: list[Sequence[str | tuple[str, str]]] = []
    for name, of_claim in groupby(verdicts, lambda verdict: verdict.claim.name):
        rows.append([name])
        rows += [[f"  {one.of}", *_numbers(one), (one.answer, _STYLES[one.answer])] for one in of_claim]
    headings, title = ("claim, of", "number", "95 % interval", "claimed", "verdict"), "\n".join([arms.task, *arms.told])
    table = plain_table(headings, rows, title=title, left=("claim, of", "verdict"), no_wrap=True)
    table.collapse_padding = True  # else the widest rows do not fit 80 columns
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
