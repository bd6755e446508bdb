"""`layersim report RUN_DIR`: a run as one HTML page."""

import argparse
from pathlib import Path
from typing import get_args

from rich.console import Console

from layersim.errors import UserError
from layersim.report.page.document import write_page
from layersim.report.records import RECORDS_FILE, Stage

PAGE_FILE = "report.html"


def main(args: list[str]) -> int:
    """Runs the command with what stands behind `layersim report`; 0 when all went well."""
    parser = argparse.ArgumentParser(
        prog="layersim report",
        description="Write a run's page: one HTML file that opens from disk, with no network.",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help=f"a run's directory, with {RECORDS_FILE}")
    parser.add_argument("--output", type=Path, metavar="HTML", help=f"the page; default: RUN_DIR/{PAGE_FILE}")
    parser.add_argument("--stage", choices=get_args(Stage), default="validate", help="default: %(default)s")
    options = parser.parse_args(args)
    output = options.output or options.run / PAGE_FILE
    check_page_name("--output", output)
    notices = write_page([options.run], output, stage=options.stage)
    console = Console()
    for line in (*notices, f"Page: {output}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def check_page_name(option: str, path: Path) -> None:
    """Refuses a page that would not open in a browser.

    Raises:
        UserError: the name does not end in .html.
    """
    if path.suffix != ".html":
        raise UserError(f"{option}: expected the name of a page, which ends in .html, got {path}.")
