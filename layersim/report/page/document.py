"""The page itself: everything that it shows and everything that draws it, in one file.

The drawings are SVG by a small script of our own. A plotting library inlined would be 1 to 4.5 MB a run, its heat maps
and curves could not be walked by keyboard or read by a screen reader, and its colours would not follow dark mode.
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from layersim.report.page.comparison import comparison_notices, drawn_groups, interval_table, runs_table
from layersim.report.page.markup import count, notes
from layersim.report.page.run_page import (
    MOST_NUMBERS,
    RunPage,
    drawn,
    history,
    read_run,
    scales,
    shades,
    thin,
    thinning_notice,
)
from layersim.report.page.section import section
from layersim.report.page.seeds import group_runs
from layersim.report.records import LayerRecord, Stage
from layersim.report.run import name_runs, pick_record

PAGE_FILE = "report.html"
"""The page of one run, in its directory."""
_SCRIPTS = ("svg.js", "charts.js", "panels.js", "page.js")


def write_page(
    directories: Sequence[Path], path: Path, *, stage: Stage = "validate", epoch: int | None = None
) -> list[str]:
    """Writes the page of these runs; of several, the comparison comes first. Whoever looks at `path` meanwhile sees the
    old page or the new one, whole.

    Args:
        directories: of the runs.
        path: of the page.
        stage: whose records are shown.
        epoch: that is compared and shown at first; each run's last where None.

    Returns:
        What a reader must know of the reading, which the page says too: lines lost, epochs left out.

    Raises:
        UserError: a directory is not a run's, a file in it is broken, or the stage or epoch was not recorded.
    """
    pages = [read_run(directory.resolve()) for directory in directories]
    records = [pick_record(page.run, stage=stage, epoch=epoch) for page in pages]
    names = name_runs([page.run for page in pages])
    every_shown: list[LayerRecord] = []
    shown, notices = [], [notice for page in pages for notice in page.notices]
    for name, page, record in zip(names, pages, records, strict=True):
        every = history(page.run, stage)
        kept = thin(every, MOST_NUMBERS // len(pages))
        if len(kept) < len(every):
            page.notices.append(thinning_notice(name, len(kept), len(every)))
            notices.append(page.notices[-1])
        every_shown += kept
        shown.append(drawn(name, page, kept, record))
    comparison, groups, told = _comparison(names, pages, records)
    content = _fill(
        title=names[0] if len(names) == 1 else f"{count(len(names), 'run')} compared",
        notices=notes(told),
        comparison=comparison,
        sections="\n".join(
            section(number, name if len(names) > 1 else "The run", page, record)
            for number, (name, page, record) in enumerate(zip(names, pages, records, strict=True))
        ),
        data={"runs": shown, "groups": groups, "scales": scales(every_shown), "layerColors": shades("viridis")},
    )
    _write(path, content)
    return notices + told


def _comparison(
    names: Sequence[str], pages: Sequence[RunPage], records: Sequence[LayerRecord]
) -> tuple[str, list[dict[str, Any]], list[str]]:
    """The comparison as HTML, as the script draws it, and what must be known of it; nothing of one run."""
    if len(pages) == 1:
        return "", [], []
    groups = group_runs([page.run.name for page in pages], records)
    parts = [
        '<section id="comparison" aria-labelledby="comparison-name">',
        '<h2 id="comparison-name">Comparison</h2>',
        '<div class="panels"></div>',
        interval_table(groups, records),
        runs_table(names, pages, records),
        "</section>",
    ]
    return "\n".join(parts), drawn_groups(groups, records), comparison_notices(groups, pages, records)


def _fill(*, title: str, notices: str, comparison: str, sections: str, data: dict[str, Any]) -> str:
    source = files(__package__)
    style = source.joinpath("page.css").read_text(encoding="utf-8")
    script = "\n".join(source.joinpath(name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return Template(source.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{_digest(script)}'",
        title=escape(title),
        style=style,
        notices=notices,
        comparison=comparison,
        sections=sections,
        data=embedded(data),
        script=script,
    )


def embedded(data: Any) -> str:
    """JSON that can stand in a `<script>` element: no name in it can end the element or begin a comment."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _digest(script: str) -> str:
    """What the page's own policy knows its script by: another one, wherever it came from, does not run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(content, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
