"""`make demo`: three objectives on the digits, compared, and what leaving early saves.

    python experiments/vision/digits/demo.py runs/demo [--epochs 24]

`layersim fit` with each recipe side by side; then `layersim exits` one after the other, so that nothing else runs while
models are timed; then `layersim compare`. Each model's process finds everything imported. All have two threads, for
sums differ between one thread and two: figures are the same on any number of cores.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from layersim.__main__ import main as layersim
from layersim.report.records import RECORDS_FILE

RECIPES = Path(__file__).parent
OBJECTIVES = ("last_layer", "aligned", "separate_heads")
QUIET = ["--trainer.logger=false", "--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false"]
ENVIRONMENT = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
"""Threads that wait leave their core to others; that changes no sum."""


def call(words: list[str], output: Path) -> None:
    """Ends this process with the status of `layersim` with these words; what that says is written to a file."""
    with output.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = ["layersim", *words]
    sys.exit(layersim(words))


def finish(asked: dict[str, list[str]], root: Path, epochs: int) -> None:
    """Runs `layersim` side by side with the words of each experiment, a bar for the epochs that each has recorded, and
    prints what they said. Where one fails the others are ended, and this program too: with its words and its status."""
    warm = multiprocessing.get_context("forkserver")
    warm.set_forkserver_preload(["layersim.commands.training", "callbacks", "sklearn.datasets"])
    logs = {name: root / f"{name.replace('/', '-')}.log" for name in asked}
    told = [f"--trainer.default_root_dir={root}", *QUIET]
    running: dict[str, ForkServerProcess] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bars:
        tasks = {name: bars.add_task(name, total=epochs) for name in asked}
        try:
            for name, words in asked.items():
                running[name] = warm.Process(target=call, args=([*words, f"--experiment={name}", *told], logs[name]))
                running[name].start()
            while any(one.is_alive() for one in running.values()) and not any(one.exitcode for one in running.values()):
                time.sleep(0.1)
                for name, task in tasks.items():
                    done = [path.read_text().count("\n") for path in (root / name).glob(f"*/{RECORDS_FILE}")]
                    bars.update(task, completed=sum(done))
        finally:
            failed = [name for name, process in running.items() if process.exitcode]
            for process in running.values():
                process.terminate()
                process.join()
    for name in failed or asked:
        print(logs[name].read_text())
    if failed:
        status = running[failed[0]].exitcode or 1
        why = f"status {status}" if status > 0 else signal.Signals(-status).name
        print(f"{failed[0]} ended with {why}; its words: {logs[failed[0]]}", file=sys.stderr)
        sys.exit(status if status > 0 else 128 - status)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder for the runs, and for what comes of them")
    parser.add_argument("--epochs", type=int, default=24)
    options = parser.parse_args()
    root: Path = options.root
    root.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and the trainings end too
    os.environ |= ENVIRONMENT | {"COLUMNS": str(Console().width)}
    length = f"--trainer.max_epochs={options.epochs}"
    fits = {f"digits/{name}": ["fit", f"--config={RECIPES / name}.yaml", length] for name in OBJECTIVES}
    finish(fits, root, options.epochs)
    for name in OBJECTIVES:
        (checkpoint,) = (root / "digits" / name).glob("*/checkpoints/last.ckpt")
        finish({f"exits/{name}": ["exits", f"--ckpt_path={checkpoint}", "--risk=0.03"]}, root, 1)
    for room, picture in (("digits", "comparison"), ("exits", "exits")):
        runs = [str(run) for name in OBJECTIVES for run in (root / room / name).iterdir()]
        if status := layersim(["compare", *runs, f"--output={root / picture}.png"]):
            return status
    print(f"{time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
