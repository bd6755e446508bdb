"""The paper's claims, judged on finished runs: a number, its interval and a verdict each."""

from layersim.report.claims.claim import Claim, Finding, judge
from layersim.report.claims.command import judge_runs, main
from layersim.report.claims.finished import read_run
from layersim.report.claims.paper import ABSOLUTE_DEPTH, CLAIMS, LIMITS
from layersim.report.claims.studies import Study, group_studies

__all__ = [
    "ABSOLUTE_DEPTH",
    "CLAIMS",
    "LIMITS",
    "Claim",
    "Finding",
    "Study",
    "group_studies",
    "judge",
    "judge_runs",
    "main",
    "read_run",
]
