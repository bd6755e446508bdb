"""`layersim report RUN_DIR`: a run as one HTML page."""

from pathlib import Path
from typing import Literal

from layersim.errors import UserError
from layersim.report.page import PAGE_FILE, write_page


def report(run: Path, *, output: Path | None = None, stage: Literal["validate", "test"] = "validate") -> None:
    """Write a run's page: one HTML file that opens from disk, with no network.

    Args:
        run: a run's directory, with layers.jsonl
        output: the page; report.html in the run's directory where left out
        stage: whose records are shown

    Raises:
        UserError: no page's name; a directory that is no run's, or a broken file.
    """
    output = output or run / PAGE_FILE
    if output.suffix != ".html":
        raise UserError(f"--output: expected the name of a page, which ends in .html, got {output}.")
    print(*write_page([run], output, stage=stage), f"Page: {output}", sep="\n")
