"""`make demo` in short: three trainings side by side, their exits, and what is said where one fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.measured import measured
from tests.processes import PATIENCE

DIGITS = Path(__file__).parent.parent / "experiments/vision/digits"


def demo(root: Path, epochs: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DIGITS / "demo.py"), str(root), f"--epochs={epochs}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.skipif(not os.environ.get("LAYERSIM_LONG"), reason="`make test-long`: a minute")
def test_the_demo_measures_what_the_command_does_alone(tmp_path: Path) -> None:
    done = demo(tmp_path, 1)
    assert done.returncode == 0, done.stderr
    for words in ("digits/separate_heads", "mean saturation", "measured gain", "exits-tradeoff.png"):
        assert words in done.stdout
    for name in ("comparison", "exits", "exits-tradeoff"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    options = [f"--trainer.default_root_dir={tmp_path}", "--experiment=alone", "--trainer.max_epochs=1"]
    alone = [sys.executable, "-m", "layersim", "fit", f"--config={DIGITS / 'aligned.yaml'}", *options]
    threads = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "WANDB_MODE": "disabled"}
    subprocess.run(alone, env=threads, capture_output=True, check=True, timeout=PATIENCE)
    (one,), (other,) = (tmp_path / "digits/aligned").iterdir(), (tmp_path / "alone").iterdir()
    assert json.dumps(measured(one)) == json.dumps(measured(other)), "to the last digit"


def test_a_training_that_fails_ends_the_demo_with_its_line_and_its_status(tmp_path: Path) -> None:
    done = demo(tmp_path, -5)
    assert done.returncode == 2
    assert "`max_epochs` must be a non-negative integer or -1" in done.stdout
    assert "ended with status 2; its words: " in done.stderr
    assert not (tmp_path / "comparison.png").exists()
