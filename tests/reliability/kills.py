"""Trainings killed at any instant, and gone on with: do they end with the numbers of one that was not?"""

import csv
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from layersim.runs.whole_checkpoints import is_whole
from tests import tiny
from tests.reliability.children import Child, command
from tests.reliability.tally import AT_ONCE, Tally

COUNT = 500
INJECTED = (
    "Trainings of a ViT with dropout and stochastic depth on the digits, killed (SIGKILL to the whole process group) "
    "at a random instant or while a checkpoint is being written, and gone on with by `fit --resume last`: four "
    "objectives; 0, 1 and 2 loader workers; 1 and 2 processes; checkpoints at each epoch's end or every 3 steps "
    "within it; with and without accumulation. Every 25th is killed again and again, 20 times in all. Compared to the "
    "bit with a training that was not killed: weights, optimizer, schedule, every line of `layers.jsonl` and "
    "`metrics.csv`."
)
CHAIN, EVERY_CHAIN = 20, 25
_OBJECTIVES: dict[str, dict[str, Any]] = {
    "aligned": {"class_path": "Aligned", "init_args": {"weights": "linear"}},
    "sampled": {"class_path": "Aligned", "init_args": {"weights": "linear", "sampled_layers": 1}},
    "alternating": {"class_path": "Alternating"},
    "uncertainty": {"class_path": "UncertaintyWeighted"},
}


@dataclass(frozen=True)
class Case:
    """A training that is killed."""

    objective: str
    every: int | None
    """Steps between checkpoints; None: one at each epoch's end."""
    accumulate: int
    workers: int
    processes: int

    def recipe(self) -> dict[str, Any]:
        """As `--config` reads it."""
        objective = dict(_OBJECTIVES[self.objective])
        objective["class_path"] = f"layersim.objectives.{objective['class_path']}"
        arguments = tiny.ARCHITECTURE | {"proj_drop_rate": 0.2, "drop_path_rate": 0.1}
        options: dict[str, Any] = {"name": "vit_tiny_patch16_224", "num_classes": 10, "img_size": 8, "in_chans": 1}
        options |= {"model_args": arguments}
        backbone = {"class_path": "layersim.backbones.TimmBackbone", "init_args": options}
        saved = {"filename": "{step}", "save_top_k": -1, "every_n_train_steps": self.every}
        within = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saved}
        trainer: dict[str, Any] = {"accelerator": "cpu", "logger": False, "max_epochs": 3, "log_every_n_steps": 1}
        trainer |= {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 2}
        trainer |= {"accumulate_grad_batches": self.accumulate, "num_sanity_val_steps": 0}
        trainer |= {"devices": self.processes, "strategy": "ddp" if self.processes > 1 else "auto"}
        trainer |= {"callbacks": [within]} if self.every else {}
        read = {"batch_size": 64 // self.processes, "eval_batch_size": 64, "max_train_samples": 530}
        data = {"class_path": "layersim.data.Digits", "init_args": read | {"num_workers": self.workers}}
        schedule = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 3}}
        model = {"backbone": backbone, "objective": objective, "lr_scheduler": schedule}
        return {"model": model, "data": data, "trainer": trainer, "experiment": "killed"}


def run(count: int, seed: int, folder: Path) -> Tally:
    """Kills so many trainings, one a core."""
    tally, generator = Tally(), random.Random(seed)
    plan: list[tuple[Case, int, int]] = []
    while (left := count - sum(chain for _, chain, _ in plan)) > 0:
        chain = min(left, CHAIN if len(plan) % EVERY_CHAIN == EVERY_CHAIN - 1 else 1)
        one = Case(
            objective=generator.choice([*_OBJECTIVES]),
            every=generator.choice([None, 3]),
            accumulate=generator.choice([1, 1, 2]),
            workers=generator.choice([0, 1, 2]),
            processes=2 if len(plan) % 5 == 2 else 1,
        )
        plan.append((one, chain, generator.randrange(2**32)))
    same = [*dict.fromkeys(replace(one, workers=0, every=None) for one, _, _ in plan)]
    places = [folder / f"unbroken-{number}" for number in range(len(same))]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        unbroken = dict(zip(same, pool.map(_unbroken, same, places), strict=True))
        numbered = enumerate(plan)
        for ends in pool.map(lambda told: [*_broken(folder / f"killed-{told[0]}", *told[1], unbroken)], numbered):
            for bad, said in ends:
                tally.lost.append(said) if bad else tally.outcomes.update([said])
    return tally


def _unbroken(case: Case, folder: Path) -> tuple[dict[str, Any], float]:
    begun = time.monotonic()
    children = _start(case, folder, [])
    assert [child.wait() for child in children] == [0] * len(children), children[0].said
    return _ended(folder), time.monotonic() - begun


def _broken(
    folder: Path, case: Case, chain: int, seed: int, unbroken: dict[Case, tuple[dict[str, Any], float]]
) -> Iterator[tuple[bool, str]]:
    """Whether each kill's end is bad, and what to say of it."""
    expected, seconds = unbroken[replace(case, workers=0, every=None)]
    generator = random.Random(seed)
    told = f"{case}, seed {seed}"
    resume: list[str] = []
    ends = []
    for _ in range(chain):
        children = _start(case, folder, resume)
        if generator.random() < 0.4:
            saving = partial(_saves, folder, generator.randrange(1, 5), set())
            when = "within a save" if children[0].wait_for(saving) else "at its end"
        else:
            # a chain's links are killed early, so that there is something left for the next
            share = generator.uniform(0.3, 1) if chain == 1 else generator.uniform(0.1, 0.5)
            children[0].process.join(share * seconds)
            when = "at a random instant" if children[0].process.is_alive() else "at its end"
        for child in children:
            child.kill()
        for path in folder.rglob("*.ckpt"):
            if not path.name.startswith(".") and not is_whole(path):
                yield True, f"{told}: {path.name} is not whole after the kill"
        there = any(folder.rglob("checkpoints/*.ckpt"))
        resume = ["--resume=last"] if there else []
        ends.append(f"{when}, {'gone on with' if there else 'begun anew, as no checkpoint was there yet'}")
    children = _start(case, folder, resume)
    statuses = [child.wait() for child in children]
    wrong = ""
    if any(statuses):
        wrong = f"the training that goes on ended with {statuses}: {children[0].said[-300:]!r}"
    elif different := _different(_ended(folder), expected):
        wrong = f"{', '.join(different)} differ"
    if wrong:
        yield True, f"{told}: {wrong}"
    for end in ends[1:] if wrong else ends:
        yield False, "one of a chain that ended wrong" if wrong else f"killed {end}: bitwise equal"


def _saves(folder: Path, nth: int, seen: set[Path]) -> bool:
    """Whether so many checkpoints were begun to be written, as far as anybody saw."""
    seen |= {*folder.rglob(".*.ckpt.*.part")}
    return len(seen) >= nth


def _start(case: Case, folder: Path, resume: list[str]) -> list[Child]:
    """A child for each process, as torchrun starts them."""
    folder.mkdir(exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(case.recipe()))
    given = [*resume, "--experiment=killed"] if resume else [f"--config={recipe}"]
    words = ["fit", *given, f"--trainer.default_root_dir={folder / 'runs'}", f"--data.num_workers={case.workers}"]
    environment = {"OMP_NUM_THREADS": "1"}
    if case.processes == 1:
        return [Child(folder / "said", command, words, environment=environment)]
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(case.processes)}
    environment |= {"TORCHELASTIC_RUN_ID": folder.name, "LOCAL_WORLD_SIZE": str(case.processes), "GROUP_RANK": "0"}
    return [
        Child(
            folder / f"said-{rank}",
            command,
            words,
            environment=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(case.processes)
    ]


def _ended(folder: Path) -> dict[str, Any]:
    """What the newest run of a root ended with."""
    last = max(folder.glob("runs/killed/*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    checkpoint = torch.load(last, weights_only=True)
    kept = {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")}
    directory = last.parent.parent
    with (directory / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    return kept | {"layers.jsonl": (directory / "layers.jsonl").read_text(), "metrics.csv": rows}


def _different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [name for name in one if not _equal(one[name], other[name])]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
