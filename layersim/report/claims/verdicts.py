"""What each claim comes to on runs: a number, its interval and an answer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

from layersim.report.claims.arms import Arms
from layersim.report.claims.claim import LIMITS, Claim, Limits
from layersim.report.claims.intervals import Estimate, Measured, NotMeasured, difference, estimate
from layersim.report.claims.paper import CLAIMS, absolute_depth

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
    """
    chosen = LIMITS | dict(limits or {})
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
    """By seed, of those runs that tell it.

    Raises:
        NotMeasured: none does.
    """
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
