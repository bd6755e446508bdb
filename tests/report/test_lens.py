"""`lens.json`, and what table, figure and page make of it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from layersim.errors import UserError
from layersim.report.lens import (
    LENS_FILE,
    lens_figure,
    lens_panels,
    lens_quantities,
    lens_table,
    read_lens_record,
    write_lens_record,
)
from layersim.report.page.comparison import lens_charts
from layersim.report.records import LayerRecord
from tests.report.test_figures import points

ACCURACIES = {"readable": [0.25, 0.75], "recoverable": [0.5, 0.75], "known": [0.625, 0.875], "chance": [0.125, 0.125]}
LOSSES = {"readable": [2.0, 1.0], "recoverable": [1.5, 1.0], "known": [1.25, 0.75], "chance": [2.25, 2.25]}


def record(*, tokens: bool = False) -> LayerRecord:
    found = lens_quantities(ACCURACIES, LOSSES, {"known": {"penalty": [1.0, 0.1]}}, tokens=tokens)
    return LayerRecord(epoch=0, step=0, stage="validate", layers=2, samples=80, quantities=found)


def test_gaps_are_what_the_one_has_more_and_loses_less() -> None:
    found = record()
    assert found.values("recoverable_readable_gap") == [0.25, 0.0]
    assert found.values("known_recoverable_gap") == [0.125, 0.125]
    assert found.values("recoverable_readable_loss_gap") == [0.5, 0.0]
    assert found.values("known_recoverable_loss_gap") == [0.25, 0.25]
    assert record(tokens=True).values("known_recoverable_loss_gap") == [0.25, 0.25], "in nats too"
    assert record(tokens=True).values("known_perplexity") == pytest.approx([3.4903430, 2.1170000])
    alone = lens_quantities({"known": [0.5]}, {"known": [1.0]}, {})
    assert list(alone) == ["known", "known_loss"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_lens_record(tmp_path) is None
    path = write_lens_record(tmp_path, record())
    assert read_lens_record(tmp_path) == record()
    assert path.read_text().count("\n") > 5, "a key a line"
    (tmp_path / LENS_FILE).write_text('{"version": 1}')
    with pytest.raises(UserError, match=r"lens\.json is damaged; run `layersim lens` again"):
        read_lens_record(tmp_path)


def test_table_figure_and_charts() -> None:
    said = io.StringIO()
    Console(file=said, width=80).print(lens_table(record()))
    told = said.getvalue()
    assert all(name in told for name in ("readable", "recoverable", "known", "− readable", "− recoverable"))
    assert "0.250" in told
    assert told.index("Accuracy at each layer, on") < told.index("0.250") < told.index("Loss, in nats"), "each named"
    titles = ["accuracy", "loss", "accuracy gap", "loss gap"]
    assert list(lens_panels(record())) == titles
    first, *_ = lens_figure(record())["concat"]
    assert {name: [value for _, value in points(first, name)] for name in ACCURACIES} == ACCURACIES
    assert [chart["title"] for chart in lens_charts({"a": record()})] == [
        f"{title.capitalize()} by layer" for title in titles
    ]
    assert lens_charts({"a": record(), "b": record()})[0]["title"] == "Accuracy by layer: a"
