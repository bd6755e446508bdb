"""The paper's claims, judged on finished runs: a number, its interval and a verdict each."""

from layersim.report.claims.arms import ARMS, Arms, read_arms
from layersim.report.claims.claim import LIMITS, Claim
from layersim.report.claims.paper import CLAIMS
from layersim.report.claims.verdicts import Verdict, judge, markdown

__all__ = [
    "ARMS",
    "CLAIMS",
    "LIMITS",
    "Arms",
    "Claim",
    "Verdict",
    "judge",
    "markdown",
    "read_arms",
]
