"""How long `layersim fit` takes until a training's first batch, beyond what importing torch, Lightning and timm takes.

    python experiments/benchmarks/startup.py [--rounds 5]

The digits' recipe, with the default logger (W&B, offline) and with none; seconds of a processor, of all threads, which
other work on the machine changes little, and seconds of a clock. Medians over interleaved rounds, after one that
compiles what Python compiles once. About 2 minutes on 2 cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from lightning.pytorch import Callback
from rounds import machine, table

HERE = Path(__file__).parent
RECIPE = HERE.parent / "vision/digits/aligned.yaml"
CLOCKS = "print(time.process_time(), time.time(), flush=True); os._exit(0)"
IMPORTS = [sys.executable, "-c", f"import os, time, torch, lightning.pytorch, timm; {CLOCKS}"]


class FirstBatch(Callback):
    """Tells the time when the first batch of training begins, and ends the process."""

    def on_train_batch_start(self, *_: object) -> None:
        exec(f"import os, time; {CLOCKS}")


def seconds(command: list[str], folder: str) -> tuple[float, float]:
    """Of a processor, and of a clock, until the command tells the time."""
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}", "WANDB_MODE": "offline"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else each round compiles layersim anew
    begun = time.time()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    processor, now = done.stdout.split()[-2:]
    return float(processor), float(now) - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    fit = [sys.executable, "-m", "layersim", "fit", f"--config={RECIPE}", "--trainer.callbacks+=startup.FirstBatch"]
    commands = {"the imports": IMPORTS, "fit": fit, "fit, no logger": [*fit, "--trainer.logger=false"]}
    with tempfile.TemporaryDirectory() as folder:
        rounds = [{name: seconds(one, folder) for name, one in commands.items()} for _ in range(options.rounds + 1)]
    rows = []
    for name in commands:
        row = [name]
        for clock in (0, 1):
            whole = median(times[name][clock] for times in rounds[1:])
            beyond = median(times[name][clock] - times["the imports"][clock] for times in rounds[1:])
            share = median(times[name][clock] / times["the imports"][clock] for times in rounds[1:])
            row += [f"{whole:.2f}", f"{beyond:.2f}", f"{share:.2f}"]
        rows.append(row)
    print(f"\n{machine()}; {options.rounds} rounds\n")
    head = ["until the first batch of", "processor, s", "− imports", "÷ imports", "clock, s", "− imports", "÷ imports"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
