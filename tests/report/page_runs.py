"""Runs for pages, and pages read."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from layersim.report.page.charts import Chart, charts
from layersim.report.records import LayerRecord, append_record
from tests.report.recorded import recorded

HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>"


def record(epoch: int = 0, layers: int = 2, **changes: Any) -> LayerRecord:
    grown = min(epoch, 9) + 1
    matrix = [[1.0 if i == j else grown / (10 + i + j) for j in range(layers)] for i in range(layers)]
    values: dict[str, Any] = {
        "epoch": epoch,
        "step": 10 * (epoch + 1),
        "stage": "validate",
        "layers": layers,
        "samples": 80,
        "accuracy": [(layer + 1 + min(epoch, 10) / 10) / (layers + 1) for layer in range(layers)],
        "loss": [2.25 / (layer + 1) for layer in range(layers)],
        "saturation": [80 - layers + 1, *[1] * (layers - 1)],
        "saturated_early": 0.75,
        "mean_saturation_layer": 1.25,
        "effective_depth": layers,
        "similarity": {"cosine": matrix, "cka": matrix},
    }
    return recorded(**(values | changes))


def make_run(directory: Path, *records: LayerRecord, config: str = "") -> Path:
    for one in records:
        append_record(directory / "layers.jsonl", one)
    (directory / "config.yaml").write_text(config or "experiment: digits\nseed_everything: 0\n")
    return directory


class Reader(HTMLParser):
    """Elements by name, and the text of the tables' cells in their order."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._within: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input"):
            self._within.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._within.pop() == tag  # what is opened is closed, in order

    def handle_data(self, data: str) -> None:
        for tag in set(self._within):
            self.texts[tag][-1] += data

    @property
    def data(self) -> Any:
        return json.loads(next(text for text in self.texts["script"] if text.startswith("{")))


def shown(*records: LayerRecord) -> dict[str, Chart]:
    """Charts by title."""
    return {chart["title"]: chart for chart in charts(records)}


def channels(chart: Chart, kind: str) -> dict[str, Any]:
    """The encoding of a chart's layer of this mark."""
    return next(layer["encoding"] for layer in chart["spec"]["layer"] if layer["mark"]["type"] == kind)
