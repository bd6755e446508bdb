"""`experiments/benchmarks/device.py`, which waits for the day that a GPU is lent, runs here without one."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "benchmarks" / "device.py"


@pytest.mark.filterwarnings("ignore")  # of compilers and mixed precision, on a CPU that is no GPU
def test_every_part_runs_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "DEVICE.md"
    page.write_text("# Measured\n\n## Another GPU, torch 1.0\n\nkept\n")
    words = ["--device=cpu", "--small", f"--page={page}", "--skip", "tests", "strategies"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    text = page.read_text()
    assert ended.value.code == 0, text
    assert "## Another GPU, torch 1.0\n\nkept\n" in text
    assert text.count("\n### ") == 5
    assert "Failed" not in text
    for row in ("forward, all measures", "layersim, n 64", "aligned", "stored logits", "exits, batch 8"):
        assert f"| {row} | " in text
