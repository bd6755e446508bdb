"""`layersim compare RUN_DIR …`: several runs side by side, as a table on the terminal, as figures, and as a page."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from layersim.errors import UserError
from layersim.report.drawing.pictures import save_picture
from layersim.report.figures import comparison
from layersim.report.page.document import write_page_of
from layersim.report.page.section import read_runs
from layersim.report.run import name_runs, pick_record
from layersim.report.table import comparison_table
from layersim.report.tradeoff import tradeoff_figure, tradeoff_table


def compare(
    run: list[Path],
    *,
    output: Path = Path("comparison.png"),
    stage: Literal["validate", "test"] = "validate",
    epoch: int | None = None,
) -> None:
    """Compare runs layer by layer; of those with exits (`layersim exits`), accuracy against cost too. A run with a
    damaged file is told and left out.

    Args:
        run: a run's directory, with layers.jsonl, or a pattern of some
        output: the figure, comparison.png where left out; the page gets its name with .html
        stage: whose records are compared
        epoch: which is compared; each run's last where left out

    Raises:
        UserError: no PNG's name; a directory that is no run's, no run with whole files, a stage or epoch that was not
            recorded.
    """
    if output.suffix != ".png":
        raise UserError(f"--output: expected the name of a PNG file, which ends in .png, got {output}.")
    pages, damaged = read_runs(run, stage)
    named = dict(zip(name_runs([page.run for page in pages]), pages, strict=True))
    records = {name: pick_record(page.run, stage=stage, epoch=epoch) for name, page in named.items()}
    exits = {name: page.exits for name, page in named.items() if page.exits is not None}
    console = Console()
    console.print(comparison_table(records))
    save_picture(comparison(records), output)
    written = [f"Figure: {output}"]
    if exits:
        console.print(tradeoff_table(exits))
        tradeoff = output.with_stem(f"{output.stem}-tradeoff")
        save_picture(tradeoff_figure(exits), tradeoff)
        written.append(f"Figure: {tradeoff}")
    page = output.with_suffix(".html")
    notices = write_page_of(pages, damaged, page, stage=stage, epoch=epoch)
    print(*written, *notices, f"Page: {page}", sep="\n")
