"""`layersim claims RUN_DIR …`: which of the paper's claims hold on finished runs?"""

import argparse
from pathlib import Path

from rich.console import Console

from layersim.errors import UserError
from layersim.report.claims.claim import Finding, judge
from layersim.report.claims.finished import read_run
from layersim.report.claims.paper import ABSOLUTE_DEPTH, CLAIMS, LIMITS
from layersim.report.claims.sheet import HOW, findings_table, markdown, remarks
from layersim.report.claims.studies import Study, group_studies
from layersim.report.records import RECORDS_FILE


def judge_runs(
    directories: list[Path], limits: dict[str, float]
) -> tuple[list[tuple[Study, list[Finding]]], list[str]]:
    """Every claim on every study of these runs, and how the runs were put together.

    Raises:
        UserError: a directory that is no run's, or whose files are broken; no run that was trained.
    """
    runs = {directory: read_run(directory) for directory in directories}
    studies, notes = group_studies([run for run in runs.values() if run is not None])
    unread = [f"{directory} is passed over: it holds no validation." for directory, run in runs.items() if run is None]
    notes = [*unread, *notes]
    if not studies:
        raise UserError(f"expected runs to judge, got no finished run: {' '.join(notes)}")
    claims = (*CLAIMS, ABSOLUTE_DEPTH) if "absolute-epsilon" in limits else CLAIMS
    judged = [(study, [finding for claim in claims for finding in judge(claim, study, limits)]) for study in studies]
    return judged, notes


def main(args: list[str]) -> int:
    """Runs the command with what stands behind `layersim claims`; 0 when all went well, whatever the verdicts."""
    parser = argparse.ArgumentParser(
        prog="layersim claims",
        description="Judge each claim of the paper on finished runs: a number, its interval, and a verdict (holds, "
        "does not hold, cannot tell). Runs alike but for the seed give the interval; runs on other data or models are "
        "judged apart. Give three seeds or more of standard, aligned and separate-heads training.",
    )
    parser.add_argument("run", nargs="+", type=Path, metavar="RUN_DIR", help=f"a run's directory, with {RECORDS_FILE}")
    parser.add_argument("--output", type=Path, metavar="MD", help="markdown too, with the paper's numbers beside")
    for name, (default, meaning) in LIMITS.items():
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{meaning}; default: %(default)s")
    told = "also judge the paper's depth, the first layer whose accuracy is at least 1 less this, such as 0.05"
    parser.add_argument("--absolute-epsilon", type=float, help=told)
    options = parser.parse_args(args)
    if options.output is not None and options.output.suffix != ".md":
        raise UserError(f"--output: expected the name of a markdown file, which ends in .md, got {options.output}.")
    limits = {name: getattr(options, name.replace("-", "_")) for name in LIMITS}
    if options.absolute_epsilon is not None:
        limits["absolute-epsilon"] = options.absolute_epsilon
    for name in limits.keys() & {"epsilon", "absolute-epsilon"}:
        if not 0 <= limits[name] <= 1:
            raise UserError(f"--{name}: expected a share in 0 … 1, got {limits[name]:g}.")
    judged, notes = judge_runs(list(dict.fromkeys(path.resolve() for path in options.run)), limits)
    console = Console()
    for study, findings in judged:
        console.print(findings_table(study, findings))
        for line in remarks(findings):
            console.print(line, markup=False, highlight=False)
        console.print()
    for line in (HOW, *notes):
        console.print(line, markup=False, highlight=False, soft_wrap=line != HOW)
    if options.output is not None:
        options.output.write_text(markdown(judged, notes))
        console.print(f"Markdown: {options.output}", markup=False, highlight=False, soft_wrap=True)
    return 0
