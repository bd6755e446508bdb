"""`layersim compare RUN_DIR …`: several runs side by side, as a table on the terminal, as figures, and as a page."""

import argparse
from pathlib import Path
from typing import get_args

from matplotlib.figure import Figure
from rich.console import Console

from layersim.errors import UserError
from layersim.report.drawing.canvas import save_figure
from layersim.report.exits import read_exit_report
from layersim.report.figures import comparison_figure
from layersim.report.page import write_page
from layersim.report.records import RECORDS_FILE, Stage
from layersim.report.run import load_run, name_runs, pick_record
from layersim.report.table import comparison_table
from layersim.report.tradeoff import tradeoff_figure, tradeoff_table


def main(args: list[str]) -> int:
    """Runs the command with what stands behind `layersim compare`; 0 when all went well."""
    parser = argparse.ArgumentParser(
        prog="layersim compare",
        description="Compare runs layer by layer; of those with exits (`layersim exits`), accuracy against cost too.",
    )
    parser.add_argument("run", nargs="+", type=Path, metavar="RUN_DIR", help=f"a run's directory, with {RECORDS_FILE}")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("comparison.png"),
        metavar="PNG",
        help="the figure; the page gets its name with .html",
    )
    parser.add_argument("--stage", choices=get_args(Stage), default="validate", help="default: %(default)s")
    parser.add_argument("--epoch", type=int, help="default: each run's last")
    options = parser.parse_args(args)
    if options.output.suffix != ".png":
        raise UserError(f"--output: expected the name of a PNG file, which ends in .png, got {options.output}.")
    directories = list(dict.fromkeys(path.resolve() for path in options.run))
    runs = [load_run(directory) for directory in directories]
    picked = [pick_record(run, stage=options.stage, epoch=options.epoch) for run in runs]
    names = name_runs(runs)
    records = dict(zip(names, picked, strict=True))
    found = {name: read_exit_report(run.directory) for name, run in zip(names, runs, strict=True)}
    exits = {name: report for name, report in found.items() if report is not None}
    console = Console()
    console.print(comparison_table(records))
    _save(comparison_figure(records), options.output, console)
    if exits:
        console.print(tradeoff_table(exits))
        _save(tradeoff_figure(exits), options.output.with_stem(f"{options.output.stem}-tradeoff"), console)
    path = options.output.with_suffix(".html")
    for line in (*write_page(directories, path, stage=options.stage, epoch=options.epoch), f"Page: {path}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _save(figure: Figure, path: Path, console: Console) -> None:
    save_figure(figure, path)
    console.print(f"Figure: {path}", markup=False, highlight=False, soft_wrap=True)
