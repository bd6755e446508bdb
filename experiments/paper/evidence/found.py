"""Finished runs below the evidence's root: a trained model by its task, objective and seed."""

from dataclasses import dataclass
from pathlib import Path

from tasks import TASKS, Task

from layersim.report.configuration import read_configuration
from layersim.report.records import RECORDS_FILE, LayerRecord, read_records

CHANCE = "chance"
"""Folder below the root, for validations."""


@dataclass(frozen=True)
class Trained:
    """A model that was trained to its end."""

    task: Task
    objective: str
    seed: int
    directory: Path
    record: LayerRecord
    """Of the last epoch's validation."""


def trained(root: Path, task: Task, objective: str) -> dict[int, Trained]:
    """By seed, the newest run that reached its last epoch."""
    found = {}
    for path in sorted((root / task.experiment(objective)).glob(f"*/{RECORDS_FILE}")):
        config, record = read_configuration(path.parent), read_records(path)[-1]
        if record.epoch + 1 == config["trainer"]["max_epochs"]:
            seed = config["seed_everything"]
            found[seed] = Trained(task, objective, seed, path.parent, record)
    return dict(sorted(found.items()))


def against_chance(root: Path, run: Trained) -> Path | None:
    """The directory of a validation of this model whose heat maps stand against chance; None before there is one."""
    for path in (root / CHANCE / run.task.experiment(run.objective)).glob(f"*/{RECORDS_FILE}"):
        if Path(read_configuration(path.parent)["ckpt_path"]).parent.parent == run.directory:
            return path.parent
    return None


def all_trained(root: Path) -> list[Trained]:
    """Every finished run below the root, tasks, objectives and seeds in their order."""
    return [
        run
        for task in TASKS.values()
        for objective in (*task.objectives, *task.neighbours)
        for run in trained(root, task, objective).values()
    ]
