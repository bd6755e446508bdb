"""One process of several ends, stops, hangs or raises, whatever it does: all others end and say why, in one line."""

import contextlib
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from layersim.data import Digits
from layersim.errors import UserError
from layersim.runs.whole_checkpoints import is_whole
from tests import tiny
from tests.reliability.children import Child, command
from tests.reliability.tally import Tally

INJECTED = (
    "One of 2 or 3 processes of a training (DDP on gloo) is killed, ends itself, is stopped, hangs or raises: in a "
    "step, in its loader or the loader's worker, in validation, while it saves, at the end. All must end within 10 s, "
    "10 s behind the limit where one hangs, with one line that names the rank, and leave whole checkpoints and no "
    "process. A rank 0 that takes longer than the limit for work of its own must be waited for."
)
COUNT = 60

WORKER_ENDED = r"rank {rank}: RuntimeError: DataLoader worker|raised by rank {rank} of"
SAYS = {
    "SIGKILL": r"rank {rank} (was killed|died)",
    "exit 0": r"rank {rank} (ended with status 0|died)",
    "exit 3": r"rank {rank} (ended with status 3|died)",
    "SIGSTOP": r"rank {rank} stopped answering",
    "sleep": r"rank {rank} stopped answering",
    "user's error": r"rank {rank}: no such luck",
    "bug": r"rank {rank}: KeyError: 'blocks'|raised by rank {rank} of",
    "slow": "",
}
"""What is done to a process, and what must be read then."""
PLACES = ("step", "loader", "validation", "saving", "end")
LIMIT = 6
"""Seconds that the trainings are given until a process counts as stopped."""


@dataclass(frozen=True)
class Case:
    """What is done, to which rank of how many, where, with so many loader workers."""

    fault: str
    rank: int
    world: int
    place: str
    workers: int = 0
    launched: bool = False
    """By Lightning, else by somebody else."""

    def __str__(self) -> str:
        return f"{self.fault} of rank {self.rank} of {self.world} in {self.place}, {self.workers} workers" + (
            ", started by Lightning" if self.launched else ""
        )


def act(fault: str, event: str) -> None:
    """Does it to this process, and leaves the time."""
    if os.path.exists(event):
        return
    Path(event).write_text(str(time.time()))
    match fault:
        case "SIGKILL" | "SIGSTOP":
            os.kill(os.getpid(), getattr(signal, fault))
        case "exit 0" | "exit 3":
            os._exit(int(fault[-1]))
        case "sleep":
            time.sleep(10_000)
        case "slow":
            time.sleep(3 * LIMIT)
        case "user's error":
            raise UserError("no such luck")
        case "bug":
            raise KeyError("blocks")


class Fault(Callback):
    """Does it to one rank, in the second epoch."""

    def __init__(self, fault: str, rank: int, place: str, event: str) -> None:
        self.fault, self.rank, self.place, self.event = fault, rank, place, event

    def _at(self, trainer: Trainer, place: str) -> None:
        if (place, trainer.global_rank, trainer.current_epoch) == (self.place, self.rank, 1):
            act(self.fault, self.event)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._at(trainer, "step")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at(trainer, "validation")

    def on_save_checkpoint(self, trainer: Trainer, *_: Any) -> None:
        self._at(trainer, "saving")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (self.place, trainer.global_rank) == ("end", self.rank):
            act(self.fault, self.event)


class FaultyDigits(Digits):
    """Digits, whose loader does it while it collates: in its worker where it has one."""

    def __init__(self, *, fault: str = "", fault_rank: int = 0, event: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.fault, self.fault_rank, self.event = fault, fault_rank, event

    def train_dataloader(self) -> DataLoader[Any]:
        loader = super().train_dataloader()
        trainer, collate = self.trainer, loader.collate_fn
        if self.fault and trainer is not None and (trainer.global_rank, trainer.current_epoch) == (self.fault_rank, 1):

            def faulty(samples: list[Any]) -> Any:
                act(self.fault, self.event)
                return collate(samples)

            loader.collate_fn = faulty
        return loader


def words(case: Case, folder: Path, limit: float = LIMIT) -> list[str]:
    """A training of two short epochs with the fault in the second."""
    event = str(folder / "event")
    fault = [case.fault, str(case.rank), case.place, event]
    named = zip(("fault", "rank", "place", "event"), fault, strict=True)
    watch = ["--trainer.callbacks+=layersim.runs.processes.ProcessWatch", f"--trainer.callbacks.limit={limit}"]
    broken = [f"--data.fault={case.fault}", f"--data.fault_rank={case.rank}", f"--data.event={event}"]
    return [
        "fit",
        *tiny.FLAGS,
        "--data=tests.reliability.processes.FaultyDigits",
        *(broken if case.place == "loader" else []),
        f"--data.num_workers={case.workers}",
        *watch,
        "--trainer.callbacks+=tests.reliability.processes.Fault",
        *(f"--trainer.callbacks.{name}={value}" for name, value in named),
        "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=4",
        "--trainer.reload_dataloaders_every_n_epochs=1",
        "--trainer.strategy=ddp",
        f"--trainer.devices={case.world}",
        f"--trainer.default_root_dir={folder}",
        "--without=SimilarityHeatmaps,ExitCurveMonitor,ReportWriter",
    ]


class Forked:
    """In place of the `subprocess.Popen` of Lightning's launcher: a fork of rank 0, which has imported everything."""

    def __init__(self, words: list[str], command: list[str], env: dict[str, str], cwd: str | None) -> None:
        self.process = multiprocessing.get_context("fork").Process(target=_as_rank, args=(words, env))
        self.process.start()
        self.pid, self.kill = self.process.pid, self.process.kill

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("a rank", timeout)
        return self.process.exitcode


def _as_rank(words: list[str], environment: dict[str, str]) -> None:
    os.environ |= environment
    rank_zero_only.rank = int(environment["LOCAL_RANK"])  # type: ignore[attr-defined]
    command(words)


def launched(words: list[str]) -> None:
    """The command, whose other processes Lightning's launcher starts."""
    subprocess_script.subprocess = SimpleNamespace(Popen=partial(Forked, words))  # type: ignore[attr-defined, assignment]
    command(words)


def start(case: Case, folder: Path) -> list[Child]:
    """The training: rank 0 alone, which starts the others, or all of them, as a cluster does."""
    if case.launched:
        return [Child(folder / "all.txt", launched, words(case, folder), where=folder)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(case.world), "NODE_RANK": "0"}
    return [
        Child(
            folder / f"rank{rank}.txt",
            command,
            words(case, folder),
            where=folder,
            environment=told | {"LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(case.world)
    ]


def judge(case: Case, folder: Path, statuses: list[int], said: str, seconds: float) -> str:
    """What is wrong with how a training ended, its processes with these statuses so long after the event; or nothing.

    Args:
        said: what all of them printed.
    """
    if not (folder / "event").exists():
        return f"nothing was done: {said[-500:]}"
    if case.fault == "slow":
        return "" if not any(statuses) else f"not waited for: {statuses}, {said[-500:]}"
    want = 2 if case.fault == "user's error" else 1
    in_worker = case.place == "loader" and case.workers and case.fault in ("SIGKILL", "exit 0", "exit 3")
    own = {"SIGKILL": -9, "SIGSTOP": -9, "sleep": -9, "exit 0": 0, "exit 3": 3}.get(case.fault, want)
    expected = [own if rank == case.rank and not in_worker else want for rank in range(case.world)]
    if statuses != expected[: len(statuses)]:
        return f"statuses {statuses}"
    pattern = (WORKER_ENDED if in_worker else SAYS[case.fault]).format(rank=case.rank)
    tracebacks = 4 if case.fault == "bug" or in_worker else 0
    if not re.search(pattern, said) or said.count("layersim: error:") > 1 or said.count("Traceback (m") > tracebacks:
        return f"said {said[-1500:]}"
    late = 10 + LIMIT * (case.fault in ("SIGSTOP", "sleep"))
    if seconds > late:
        return f"ended after {seconds:.0f} s"
    if not all(is_whole(path) for path in folder.glob("default/*/checkpoints/*.ckpt")):
        return "a checkpoint is not whole"
    return ""


def attempt(case: Case, folder: Path) -> tuple[str, float]:
    """Does it. Returns what is wrong, and the seconds from the event to the end of the last process."""
    folder.mkdir()
    children = start(case, folder)
    event = folder / "event"
    children[0].wait_for(event.exists, 120)
    since = float(event.read_text()) if event.exists() and event.read_text() else time.time()
    try:
        statuses = [child.wait(60) for child in children]
    except TimeoutError as error:
        return f"did not end: {error}", time.time() - since
    finally:
        until = time.monotonic() + 15
        while (left := [child.pid for child in children if _group_lives(child.pid)]) and time.monotonic() < until:
            time.sleep(0.1)
        seconds = time.time() - since
        for child in children:
            child.kill()
    wrong = judge(case, folder, statuses, "".join(child.said for child in children), seconds)
    return wrong or (f"processes stay: {left}" if left else ""), seconds


def _group_lives(pid: int) -> bool:
    """Whether a process of this group is there, other than dead ones that nobody has taken note of."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(group) == pid and state != "Z":
                return True
    return False


def cases(number: int, seed: int) -> Iterator[Case]:
    """So many, of each fault as many but for one."""
    draw = random.Random(seed)
    faults: list[str] = []
    for _ in range(number):
        faults = faults or draw.sample(list(SAYS), len(SAYS))
        fault, world, workers, launched = faults.pop(), draw.choice((2, 3)), draw.choice((0, 1)), draw.random() < 0.5
        place = draw.choice(PLACES)
        rank = 0 if fault == "slow" or place == "saving" else draw.randrange(world)
        if fault == "sleep":
            rank = 1  # rank 0 would be taken for one that has work of its own
        yield Case(fault, rank, world, "step" if place == "loader" and rank == 0 else place, workers, launched)


def run(number: int, seed: int, folder: Path) -> Tally:
    tally, names = Tally(), count()
    for case in cases(number, seed):
        wrong, seconds = attempt(case, folder / str(next(names)))
        if wrong:
            tally.lost.append(f"{case}: {wrong}")
        else:
            tally.outcomes["waited for" if case.fault == "slow" else f"{case.fault}: all ended, and said why"] += 1
        print(case, f"{seconds:.1f} s", wrong, file=sys.stderr, flush=True)
    return tally
