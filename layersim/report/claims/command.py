"""`layersim claims --standard RUN … --aligned RUN …`: which of the paper's claims hold on finished runs?"""

import argparse
import glob
from pathlib import Path

from rich.console import Console

from layersim.errors import UserError
from layersim.report.claims.arms import ARMS, read_arms
from layersim.report.claims.claim import LIMITS
from layersim.report.claims.tables import HOW, markdown, remarks, verdicts_table
from layersim.report.claims.verdicts import judge


def main(args: list[str]) -> int:
    """Runs the command with what stands behind `layersim claims`; 0 when all went well, whatever the verdicts."""
    parser = argparse.ArgumentParser(
        prog="layersim claims",
        description="Judge each claim of the paper on finished runs of one model on one data set: a number, its "
        "interval, and a verdict (holds, does not hold, cannot tell). Runs alike but for the seed give the interval. "
        "Give three seeds or more of standard, aligned and separate-heads training.",
    )
    for arm, meaning in ARMS.items():
        told = f"directories of runs, or patterns of some: {meaning}"
        parser.add_argument(f"--{arm}", nargs="+", default=[], metavar="RUN", help=told)
    parser.add_argument("--output", type=Path, metavar="MD", help="markdown too, with the paper's numbers beside")
    for name, (default, meaning) in LIMITS.items():
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{meaning}; default: %(default)s")
    told = "also judge the paper's depth, the first layer whose accuracy is at least 1 less this, such as 0.05"
    parser.add_argument("--absolute-epsilon", type=float, help=told)
    options = {name.replace("_", "-"): value for name, value in vars(parser.parse_args(args)).items()}
    output = options["output"]
    if output is not None and output.suffix != ".md":
        raise UserError(f"--output: expected the name of a markdown file, which ends in .md, got {output}.")
    limits = {name: options[name] for name in (*LIMITS, "absolute-epsilon") if options[name] is not None}
    for name in limits.keys() & {"epsilon", "absolute-epsilon"}:
        if not 0 <= limits[name] <= 1:
            raise UserError(f"--{name}: expected a share in 0 … 1, got {limits[name]:g}.")
    arms = read_arms({arm: _directories(arm, options[arm]) for arm in ARMS if options[arm]})
    verdicts = judge(arms, limits)
    console = Console()
    console.print(verdicts_table(arms, verdicts))
    for line in (*remarks(verdicts), "", HOW):
        console.print(line, markup=False, highlight=False)
    for line in arms.notes:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if output is not None:
        output.write_text(markdown([(arms, verdicts)]))
        console.print(f"Markdown: {output}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _directories(arm: str, patterns: list[str]) -> list[Path]:
    """What the shell left as patterns is looked for here; of those only folders count."""
    found: list[Path] = []
    for pattern in patterns:
        of_pattern = [Path(path) for path in sorted(glob.glob(pattern)) if Path(path).is_dir()]
        if not of_pattern:
            raise UserError(f"--{arm}: expected a run's directory, or a pattern of some, got {pattern}: there is none.")
        found += of_pattern
    return found
