"""Finished runs below the evidence's root: a trained model by its task, objective and seed."""

from dataclasses import dataclass
from pathlib import Path

from tasks import TASKS, Task

from layersim.report.configuration import CONFIG_FILE, read_configuration
from layersim.report.records import RECORDS_FILE, LayerRecord, read_records


@dataclass(frozen=True)
class Trained:
    """A model that was trained to its end."""

    task: Task
    objective: str
    seed: int
    directory: Path
    record: LayerRecord
    """Of the last epoch's validation."""


def trained(root: Path, task: Task, objective: str, seed: int) -> Trained | None:
    """The newest run that reached its last epoch."""
    for path in sorted((root / task.experiment(objective)).glob(f"*/{RECORDS_FILE}"), reverse=True):
        config = read_configuration(path.parent)
        records = read_records(path)
        if config["seed_everything"] == seed and records[-1].epoch + 1 == config["trainer"]["max_epochs"]:
            return Trained(task, objective, seed, path.parent, records[-1])
    return None


def all_trained(root: Path) -> list[Trained]:
    """Every finished run below the root, tasks and objectives in their order."""
    found = []
    for task in TASKS.values():
        for objective in (*task.objectives, *task.neighbours):
            paths = (root / task.experiment(objective)).glob(f"*/{CONFIG_FILE}")
            seeds = {read_configuration(path.parent)["seed_everything"] for path in paths}
            found += [run for seed in sorted(seeds) if (run := trained(root, task, objective, seed)) is not None]
    return found
