"""The table of metrics is whole, whatever befalls its file."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from layersim.errors import UserError
from layersim.runs.resume import earlier_rows
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


def test_rows_of_a_resumed_run_are_text_as_they_are_found(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    total = {"total": {"processed": 1, "ready": 1}}
    checkpoint: dict[str, Any] = {"global_step": 3, "epoch": 0, "loops": {"fit_loop": {"epoch_progress": total}}}
    checkpoint["place"] = {"rows": 2, "unlogged": {}, "loss": torch.tensor([3.0, 2.0])}
    path.write_text("step,train/loss\n?,0.5\n2,1.5\n3,9\n")
    own = [{"step": "?", "train/loss": "0.5"}, {"step": "2", "train/loss": "1.5"}]
    assert earlier_rows(path, checkpoint) == own
    checkpoint["global_step"] = 5
    assert earlier_rows(path, checkpoint)[2:] == [{"epoch": "0", "step": "4", "train/loss": "1.5"}]
    path.write_bytes(b"step,train/loss\n\xff,0.5\n")
    with pytest.raises(UserError, match=f"^{path} cannot be read: .*0xff"):
        earlier_rows(path, checkpoint)
