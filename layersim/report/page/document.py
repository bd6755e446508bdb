"""The page itself: everything that it shows and everything that draws it, in one file."""

import base64
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from layersim.report.drawing.painter import vega
from layersim.report.page.charts import charts, drawn_record
from layersim.report.page.comparison import compared
from layersim.report.page.section import RunPage, notes, read_runs, section
from layersim.report.quantity import curves
from layersim.report.records import RECORDS_FILE, LayerRecord, Stage
from layersim.report.run import Run, name_runs, pick_record
from layersim.writing import written_whole

PAGE_FILE = "report.html"
"""The page of one run, in its directory."""
MOST_NUMBERS = 220_000
"""On a page: below 2 MB. Runs with more (long trainings of deep models) have some of their epochs left out."""


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
        UserError: a directory is not a run's, none has whole files, or the stage or epoch was not recorded.
    """
    return write_page_of(*read_runs(directories), path, stage=stage, epoch=epoch)


def write_page_of(
    pages: Sequence[RunPage], damaged: Sequence[str], path: Path, *, stage: Stage, epoch: int | None
) -> list[str]:
    """The same of what `read_runs` gave."""
    records = [pick_record(page.run, stage=stage, epoch=epoch) for page in pages]
    names = name_runs([page.run for page in pages])
    kept = []
    for name, page in zip(names, pages, strict=True):
        every = history(page.run, stage)
        kept.append(thin(every, MOST_NUMBERS // len(pages)))
        if len(kept[-1]) < len(every):
            told = f"{len(kept[-1])} of its {len(every)} epochs are here, to keep the page small"
            page.notices.append(f"{name}: {told}; {RECORDS_FILE} has them all.")
    comparison, static, warned = compared(names, pages, records)
    warned = [*damaged, *warned]
    sections = [
        section(number, name if len(names) > 1 else "The run", page, record)
        for number, (name, page, record) in enumerate(zip(names, pages, records, strict=True))
    ]
    runs = [_drawn(*each) for each in zip(names, kept, records, strict=True)]
    content = _fill(
        title=escape(names[0] if len(names) == 1 else f"{len(names)} runs compared"),
        notices=notes(warned),
        comparison=comparison,
        sections="\n".join(sections),
        data={"runs": runs, "charts": charts([record for each in kept for record in each]), "static": static},
    )
    _write(path, content)
    return [notice for page in pages for notice in page.notices] + warned


def history(run: Run, stage: Stage) -> list[LayerRecord]:
    """The run's records of a stage by epoch and step. Of an epoch that a resumed run repeated, the later one counts."""
    latest = {(record.epoch, record.step): record for record in run.records if record.stage == stage}
    return [latest[place] for place in sorted(latest)]


def thin(records: list[LayerRecord], numbers: int) -> list[LayerRecord]:
    """The records, or, where they hold more numbers than this, as many as fit (at least two): the first, the last, and
    others at even distances between."""
    held = [record.quantities.values() for record in records]
    each = max(1, *(sum(np.size(one.values) * (3 if one.null else 1) for one in quantities) for quantities in held))
    if each * len(records) <= numbers:
        return records
    kept = min(max(2, numbers // each), len(records))
    return [records[place] for place in np.linspace(0, len(records) - 1, kept).round().astype(int)]


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script. Bundling takes a second or two: it is done once for a release, and
    kept in the user's cache where that can be written."""
    kept = user_cache_path("layersim") / f"vega-{version('vl-convert-python')}.js"
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    script = vega("javascript_bundle").decode()
    with suppress(OSError):
        _write(kept, script)
    return script


def embedded(data: Any) -> str:
    """JSON that can stand in a `<script>` element: no name in it can end the element or begin a comment."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _drawn(name: str, records: list[LayerRecord], selected: LayerRecord) -> dict[str, Any]:
    """The run as the page's script reads it; `selected` is shown at first, or what is left of its epoch."""
    epochs = [record.epoch for record in records]
    return {
        "name": name,
        "axis": "epoch" if len(set(epochs)) == len(epochs) else "step",  # validated more often than once an epoch
        "first": max(place for place, record in enumerate(records) if place == 0 or record.step <= selected.step),
        "records": [drawn_record(record) for record in records],
        "columns": [*curves(selected.quantities)],
    }


def _fill(*, data: dict[str, Any], **texts: str) -> str:
    source = files(__package__)
    style, script, frame = (source.joinpath(f"page.{end}").read_text(encoding="utf-8") for end in ("css", "js", "html"))
    digests = " ".join(f"'{_digest(each)}'" for each in (library(), script))
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {digests}"
    parts = {"policy": policy, "style": style, "library": library(), "script": script, "data": embedded(data)}
    return Template(frame).substitute(parts | texts)


def _digest(script: str) -> str:
    """What the page's own policy knows a script by: another one, wherever it came from, does not run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_text(content, encoding="utf-8")
