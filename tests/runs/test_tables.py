"""The table of metrics is whole, whatever befalls its file."""

import os
from pathlib import Path

import pytest

from layersim.runs.tracking import WholeTable


def test_a_table_that_cannot_be_written_keeps_its_rows_and_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = WholeTable(tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    before = (tmp_path / "metrics.csv").read_text()
    assert before == "a,step\n1.0,0\n"
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda *_: os.stat(tmp_path / "nowhere"))
    with pytest.raises(OSError, match=r"No such file or directory: .*metrics\.csv"):
        logger.log_metrics({"a": 2.0, "b": 3.0}, step=1)  # a new column: the whole file is written anew
    assert (tmp_path / "metrics.csv").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    monkeypatch.setattr(Path, "replace", replace)
    logger.save()
    assert (tmp_path / "metrics.csv").read_text() == "a,b,step\n1.0,,0\n2.0,3.0,1\n"


def test_a_row_that_is_cut_is_taken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = WholeTable(tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    path = tmp_path / "metrics.csv"

    def cut(self: object, rows: object) -> None:
        with path.open("a") as file:
            file.write("2.0,")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("csv.DictWriter.writerows", cut)
    with pytest.raises(OSError, match="No space left on device"):
        logger.log_metrics({"a": 2.0}, step=1)
    assert path.read_text() == "a,step\n1.0,0\n"
