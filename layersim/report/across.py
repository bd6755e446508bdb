"""How alike the layers of two models are: the record `similarity.json`, its table and its figure.

Letters: L layers of model a, M layers of model b.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from rich.table import Table

from layersim.report.drawing.colors import scale_of
from layersim.report.drawing.pictures import INK, Picture, heat_map, shorten
from layersim.report.drawing.specifications import upper
from layersim.report.json_report import Numbers, Report, write_report
from layersim.report.quantity import Quantity
from layersim.report.terminal import table_by_layer

_PAIRS = Numbers(("rows", "columns"))


@dataclass(frozen=True, kw_only=True)
class AcrossReport(Report):
    """The similarity of every layer of model a to every layer of model b."""

    FILE: ClassVar[str] = "similarity.json"
    VERB: ClassVar[str] = "similarity"
    FORMS: ClassVar[dict[str, Any]] = {
        "similarity": _PAIRS,
        "null": (None, dict.fromkeys(("p", "p_family", "calibrated"), _PAIRS)),
    }

    models: dict[str, dict[str, str]]
    """Under `a` and `b`: `name`, and `given`, what was typed."""
    measure: str
    options: dict[str, Any]
    """How the measure was computed."""
    label: str
    """The measure's name for people."""
    range: tuple[float | None, float | None]
    """The least and the most that the measure can be."""
    identical: float
    """The measure of a layer against itself: 1 of a similarity, 0 of a distance."""
    data: dict[str, Any]
    """A recipe's section `data`."""
    split: str
    samples: int
    """N that were compared."""
    similarity: list[list[float]]
    """(L, M), first layers first; NaN where a layer could not be measured."""
    null: dict[str, Any] | None = None
    """As of a `Quantity`."""

    def write(self, directory: Path) -> Path:
        """Writes `similarity.json`, with depths and best matches too."""
        layers = {"a": len(self.similarity), "b": len(self.similarity[0])}
        matches = {"a": self.matches_of_a, "b": self.matches_of_b}
        return write_report(directory / self.FILE, asdict(self) | {"layers": layers, "matches": matches})

    @property
    def matches_of_a(self) -> list[int | None]:
        """(L,) for each layer of a the layer of b that is most like it, from 1; None where none could be measured."""
        return [self._best(row) for row in self.similarity]

    @property
    def matches_of_b(self) -> list[int | None]:
        """(M,) for each layer of b the layer of a that is most like it."""
        return [self._best(column) for column in zip(*self.similarity, strict=True)]

    @property
    def quantity(self) -> Quantity:
        """The similarities as they are drawn, a up and b across."""
        up, across = (f"layer of {shorten(self.models[side]['name'], 40)}" for side in "ab")
        better: Literal["lower"] | None = "lower" if self.identical == 0 else None
        return Quantity(values=self.similarity, axes=(up, across), range=self.range, better=better, null=self.null)

    def _best(self, values: Sequence[float]) -> int | None:
        known = [place for place, value in enumerate(values) if not math.isnan(value)]
        best = min(known, key=lambda place: abs(values[place] - self.identical), default=None)
        return None if best is None else best + 1


def across_table(report: AcrossReport) -> Table:
    """A row a layer: its best match in the other model, either way, and how alike the two are."""
    options = ", ".join(f"{name} {value}" for name, value in sorted(report.options.items()))
    chance = report.quantity.within_chance()
    caption = f"{report.measure} of {report.samples} samples: {options}"
    transposed = list(zip(*report.similarity, strict=True))
    columns = []
    for side, other, matches, rows in (
        ("a", "b", report.matches_of_a, report.similarity),
        ("b", "a", report.matches_of_b, transposed),
    ):
        best = [math.nan if match is None else row[match - 1] for match, row in zip(matches, rows, strict=True)]
        columns.append((f"{side}'s: best\nin {other}", [str(match or "none") for match in matches]))
        columns.append((report.measure, [f"{value:.3f}" for value in best]))
    return table_by_layer(
        "\n".join(f"{side}: {report.models[side]['name']}" for side in "ab"),
        f"{caption}\nNo more than chance: {chance}" if chance else caption,
        columns,
    )


def across_figure(report: AcrossReport) -> Picture:
    """The heat map of all pairs, a up and b across; each layer of a has its best match in b outlined."""
    shown = report.quantity
    scale = scale_of(report.label, shown, [shown.values])
    drawn = heat_map(shown, scale, f"{upper(report.label)}, {report.samples:,} samples")
    matched = [{"x": match, "y": str(row)} for row, match in enumerate(report.matches_of_a, start=1) if match]
    place = drawn["layer"][0]["encoding"]
    outline = {"type": "rect", "fill": None, "stroke": INK, "strokeWidth": 2}
    layer = {"data": {"values": matched}, "mark": outline, "encoding": {key: place[key] for key in "xy"}}
    return drawn | {"layer": [*drawn["layer"], layer]}
