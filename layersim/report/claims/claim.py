"""A claim, and how it is judged on a study."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from layersim.report.claims.estimates import Estimate, Reading, difference, estimate
from layersim.report.claims.finished import FinishedRun
from layersim.report.claims.studies import Arm, Role, Study

Limits = Mapping[str, float]
"""The numbers that a user may set, by name."""

Verdict = Literal["holds", "does not hold", "cannot tell"]

ROLES: dict[Role, str] = {
    "standard": "LastLayer with one head",
    "shared": "one head trained at all layers",
    "separate": "SeparateHeads",
    "other": "another way to train",
}


class NotMeasured(Exception):
    """A run does not tell what a claim asks; the message says what is missing and what would measure it."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper that a number can bear out or refute.

    The number is one a run, or, with `second`, how much the runs in the role `first` have more of it than those in
    `second`. Where a run has several, the greatest counts. The claim holds where the whole interval lies on its side of
    the limit, does not hold where the whole interval lies on the other, and is open where the limit is within.
    """

    name: str
    says: str
    """In words of our own."""
    source: str
    """Where in arXiv 2406.14479."""
    number: str
    """What is measured."""
    published: str
    """The paper's number, where it prints or draws one."""
    read: Callable[[FinishedRun, Limits], Reading]
    """Raises NotMeasured."""
    check: Callable[[Sequence[FinishedRun], Limits], None] | None = None
    """Raises NotMeasured where the numbers of all runs that a finding is about say nothing together."""
    first: tuple[Role, ...]
    second: Role | None = None
    side: Literal["at most", "above"]
    limit: float | str
    """A number, or the name of one of the limits."""


@dataclass(frozen=True)
class Finding:
    """What one claim comes to for one arm, or one pair of arms."""

    claim: Claim
    arms: tuple[str, ...]
    """By name: one, or the one that is reduced by the other; empty where a role has none."""
    limit: float
    verdict: Verdict
    estimate: Estimate | None
    """None where nothing could be measured."""
    why: str
    """Of a claim that is open, why; else what is to be known of the number."""

    @property
    def of(self) -> str:
        """The arms in words."""
        return " less ".join(self.arms)


def judge(claim: Claim, study: Study, limits: Limits) -> list[Finding]:
    """The claim on each arm, or pair of arms, that it speaks of; one open finding where there is none."""
    found = [_finding(claim, arms, limits) for arms in _arms(claim, study)]
    if found:
        return found
    wanted = [claim.first, *([(claim.second,)] if claim.second else [])]
    absent = [" or ".join(ROLES[role] for role in roles) for roles in wanted if not any(map(study.of, roles))]
    return [Finding(claim, (), _limit(claim, limits), "cannot tell", None, f"no run of {' and none of '.join(absent)}")]


def _arms(claim: Claim, study: Study) -> Iterator[tuple[Arm, ...]]:
    for arm in (arm for role in claim.first for arm in study.of(role)):
        if claim.second is None:
            yield (arm,)
        else:
            for other in study.of(claim.second):
                yield arm, other


def _finding(claim: Claim, arms: tuple[Arm, ...], limits: Limits) -> Finding:
    limit, names = _limit(claim, limits), tuple(arm.name for arm in arms)
    try:
        read = [_read(claim, arm, limits) for arm in arms]
        if claim.check is not None:
            claim.check([arm.runs[seed] for arm, told in zip(arms, read, strict=True) for seed in told], limits)
    except NotMeasured as missing:
        return Finding(claim, names, limit, "cannot tell", None, str(missing))
    measured = estimate(list(read[0].values())) if len(read) == 1 else difference(read[0], read[1])
    absent = sum(len(arm.runs) - len(told) for arm, told in zip(arms, read, strict=True))
    without = f"{absent} of {sum(len(arm.runs) for arm in arms)} runs did not measure it" if absent else ""
    why = "; ".join(filter(None, [measured.why, without]))
    return Finding(claim, names, limit, _verdict(claim, measured, limit), measured, why)


def _read(claim: Claim, arm: Arm, limits: Limits) -> dict[str, Reading]:
    """By seed, of those runs that tell it.

    Raises:
        NotMeasured: none does.
    """
    found, missing = {}, NotMeasured()
    for seed, run in arm.runs.items():
        try:
            found[seed] = claim.read(run, limits)
        except NotMeasured as reason:
            missing = reason
    if not found:
        raise missing
    return found


def _verdict(claim: Claim, measured: Estimate, limit: float) -> Verdict:
    if measured.low is None or measured.high is None:
        return "cannot tell"
    above, below = measured.low > limit, measured.high <= limit
    if not (above or below):  # within, or NaN
        return "cannot tell"
    return "holds" if above == (claim.side == "above") else "does not hold"


def _limit(claim: Claim, limits: Limits) -> float:
    return claim.limit if isinstance(claim.limit, float) else limits[claim.limit]
