"""What is readable, recoverable and known at each layer, standard and aligned, of models that `layersim lens` measured.

    python experiments/paper/evidence/knowledge.py ROOT

Writes knowledge.md and knowledge.png into ROOT.
"""

import math
import sys
from pathlib import Path

import numpy as np
from found import all_trained
from rich.console import Console
from tables import Trainings, by_task, over_seeds, table
from tasks import TASKS

from layersim.report import Picture, save_picture
from layersim.report.drawing.pictures import beside, curves
from layersim.report.lens import CHANCE, KNOWN, READABLE, RECOVERABLE, read_lens_record
from layersim.report.quantity import curve

SHOWN = ("standard", "aligned")
READERS = (READABLE, RECOVERABLE, KNOWN)

Read = dict[str, dict[str, list[list[float]]]]
"""Accuracies, of tokens perplexities, by objective and reader, (L,) of each seed."""


def read(trainings: Trainings) -> Read:
    """Of the models that a lens measured."""
    found: Read = {}
    for objective in SHOWN:
        for model in trainings.get(objective, []):
            if (record := read_lens_record(model.directory)) is not None:
                for who in (*READERS, CHANCE):
                    shown = record.quantities[f"{who}_perplexity" if record.unit == "tokens" else who]
                    found.setdefault(objective, {}).setdefault(who, []).append(shown.values)
    return found


def knowledge_table(told: Read) -> str:
    """A row a layer, a column each who reads, standard before aligned."""
    columns = {f"{objective}: {who}": told[objective][who] for objective in told for who in READERS}
    rows = [
        [str(layer + 1), *(over_seeds([values[layer] for values in seeds]) for seeds in columns.values())]
        for layer in range(len(next(iter(columns.values()))[0]))
    ]
    return table(["layer", *columns], rows)


def knowledge_picture(found: dict[str, Read]) -> Picture:
    """A panel for each task and objective; a line is the mean over the seeds. Chance stands beside accuracies alone:
    its perplexity would leave the others no room."""
    panels = []
    for name, told in found.items():
        tokens = TASKS[name].tokens
        drawn = READERS if tokens else (*READERS, CHANCE)
        every = np.array([by_reader[who] for by_reader in told.values() for who in READERS])
        fixed = (math.floor(every.min()), math.ceil(every.max())) if tokens else (0, 1)  # one scale for both objectives
        for objective, by_reader in told.items():
            shown = {who: curve(np.mean(by_reader[who], axis=0).tolist(), range=fixed) for who in drawn}
            panels.append(curves(shown, f"{TASKS[name].title}, {objective}", width=260, height=190, series=[*shown]))
    return beside(panels, 2 * len(SHOWN))


def write(root: Path, console: Console) -> None:
    """Both files, if anything was measured."""
    found = {name: told for name, trainings in by_task(all_trained(root)).items() if (told := read(trainings))}
    if not found:
        console.print(f"No run in {root} was measured by `layersim lens`.")
        return
    parts = []
    for name, told in found.items():
        seeds = max(len(seeds) for by_reader in told.values() for seeds in by_reader.values())
        what = "Perplexity of a byte" if TASKS[name].tokens else "Accuracy"
        parts.append(f"## {TASKS[name].title}\n\n{what}, {seeds} seed{'s' * (seeds > 1)}:\n\n{knowledge_table(told)}\n")
    (root / "knowledge.md").write_text("\n".join(parts))
    save_picture(knowledge_picture(found), root / "knowledge.png")
    for file in ("knowledge.md", "knowledge.png"):
        console.print(f"{root / file}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    write(Path(sys.argv[1]).resolve(), Console())
