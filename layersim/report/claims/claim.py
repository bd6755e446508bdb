"""What a claim is, and the limits that a user may set."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from layersim.report.claims.finished import FinishedRun
from layersim.report.claims.intervals import Measured, NotMeasured

Limits = Mapping[str, float]
"""The numbers that a user may set, by name."""

LIMITS = {
    "drop": 0.01,
    "correlation": 0.8,
    "shallow-gain": 0.1,
    "last-layer-loss": 0.01,
    "par-loss": 0.01,
    "parameters-saved": 0.05,
    "epsilon": 0.01,
    "transfer-loss": 0.01,
}
"""What a user may set, and the defaults; `layersim.commands.claims` says what each means."""

Arms = tuple[tuple[str, ...], ...]
ONE_HEAD = ("aligned", "alternating")
"""Arms in which one head is trained at all layers."""
GAIN: Arms = (ONE_HEAD, ("standard",))
LOSS: Arms = (("standard",), ONE_HEAD)

Read = Callable[[FinishedRun, Limits], Measured]
Check = Callable[[Sequence[FinishedRun], Limits], None]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper that a number can bear out or refute.

    Where a run has several numbers, the greatest counts. The claim holds where the whole interval lies on its side of
    the limit, does not hold where the whole interval lies on the other, and is open where the limit is within.
    """

    name: str
    says: str
    """In words of our own."""
    source: str
    """Where in arXiv 2406.14479."""
    number: str
    """What is measured."""
    published: str = ""
    """The paper's number, where it prints or draws one."""
    arms: Arms = (("standard", *ONE_HEAD, "separate"),)
    """Each of the first has the number, or how much more of it than each of the second."""
    claimed: tuple[Literal["≤", ">"], float | str]
    """The limit is a number, or the name of one of the limits."""
    read: Read
    """The number of a run. Raises NotMeasured."""
    check: Check | None = None
    """Raises NotMeasured where the numbers of all runs that a verdict is about say nothing together."""


def claim(**told: Any) -> Callable[[Read], Claim]:
    """Makes a claim of the function that reads its number: its name is the function's, the number in words the
    docstring's first paragraph."""

    def of(read: Read) -> Claim:
        number = " ".join(inspect.cleandoc(read.__doc__ or "").partition("\n\n")[0].split()).removesuffix(".")
        return Claim(name=read.__name__.replace("_", "-"), number=number, read=read, **told)

    return of


def alike(tell: Callable[[FinishedRun], object], remedy: str) -> Check:
    """Refuses runs of which different things are told, with the remedy."""

    def check(runs: Sequence[FinishedRun], limits: Limits) -> None:
        if len({tell(run) for run in runs}) > 1:
            raise NotMeasured(remedy)

    return check
