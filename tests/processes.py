"""The command in processes of its own, for tests of what one process and several find."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from layersim.__main__ import main
from tests.measured import measured

PATIENCE = 3600
"""Seconds that a process of its own may take: no test fails because the machine does much else."""


def run_command(verb: str, processes: int, root: Path, *flags: str) -> Path:
    """Runs `layersim VERB` on so many processes, its runs kept under a root of its own; gives the run's directory.

    One process is this one: what it imports takes longer than what it does.
    """
    home = root / f"{verb}-{processes}"
    words = [verb, *flags, "--trainer.accelerator=cpu", f"--trainer.default_root_dir={home}"]
    if processes == 1:
        assert main([*words, "--trainer.devices=1"]) == 0
    else:
        spread = [f"--trainer.devices={processes}", "--trainer.strategy=ddp"]
        command = [sys.executable, "-m", "layersim", *words, *spread]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (directory,) = (path for path in home.glob("*/*") if path.is_dir())
    return directory


def last_record(directory: Path) -> dict[str, Any]:
    """The last line of a run's `layers.jsonl`."""
    return measured(directory)[-1]
