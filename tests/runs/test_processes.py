"""What one process sees of the others, without any that really end; those are in `tests/reliability`, but for one."""

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from layersim.errors import UserError
from layersim.runs.process_watch import End, Watch
from layersim.runs.processes import ProcessWatch
from tests import tiny
from tests.processes import PATIENCE

LIMIT = 2.0
TICKS = 4
"""Looks at the others within the limit."""


class Others:
    """Connections to all other processes of a watch, as these have them."""

    def __init__(self, rank: int, world: int, begun: int = 5, limit: float = LIMIT, **options: Any) -> None:
        self.watch = Watch(rank, limit, **options)
        pipes = {other: multiprocessing.Pipe() for other in ([0] if rank else range(1, world))}
        self.ends: dict[int, Connection] = {other: theirs for other, (_, theirs) in pipes.items()}
        self.work, self.worked = 0.0, 3.0
        self.watch.connect({other: ours for other, (ours, _) in pipes.items()}, {}, lambda: begun)

    def look(self, times: int = 1, **begun: int) -> End | None:
        """What is seen after so many looks, before each of which the others give a sign of life: `rank1=5`."""
        for _ in range(times):
            for rank, number in begun.items():
                self.ends[int(rank.removeprefix("rank"))].send((number, self.worked))
            self.worked += self.work
            if end := self.watch._look():
                return end
        return None


def test_a_silent_process_is_named_behind_the_limit() -> None:
    others = Others(0, 3)
    assert others.look(TICKS, rank1=5) is None
    end = others.look(rank1=5)
    assert end == End(2, " stopped answering: no sign of life for 2 s (ProcessWatch.limit)", 1)


@pytest.mark.parametrize(
    ("begun", "late"),
    [
        ({"rank1": 5, "rank2": 5}, None),  # all compute, or wait for none of them
        ({"rank1": 4, "rank2": 5}, 1),
        ({"rank1": 5, "rank2": 3}, 2),
        ({"rank1": 6, "rank2": 6}, None),  # rank 0 draws a figure
        ({"rank1": 5, "rank2": 6}, None),
        ({"rank1": 4, "rank2": 6}, 1),  # who sends to rank 2 before it sends to rank 1
    ],
)
def test_who_keeps_all_others_waiting_is_named_unless_rank_0_does(begun: dict[str, int], late: int | None) -> None:
    others = Others(0, 3)
    assert others.look(TICKS + 1, **begun) is None
    end = others.look(**begun)
    assert (end and end.rank) == late


def test_who_computes_is_waited_for() -> None:
    """As where one process compiles longer than the others."""
    others = Others(0, 3)
    others.work = 0.2  # seconds of each half
    assert others.look(3 * TICKS, rank1=4, rank2=5) is None
    others.work = 0.05
    end = others.look(TICKS + 2, rank1=4, rank2=5)
    assert end is not None
    assert end.rank == 1, "the control"


def test_who_goes_on_keeps_nobody_waiting() -> None:
    others = Others(0, 3)
    for step in range(5):
        assert others.look(TICKS, rank1=5, rank2=step) is None


def test_a_closed_connection_is_a_death() -> None:
    others = Others(2, 3)
    others.ends[0].close()
    assert others.look() == End(0, " died", 1)
    assert others.look() is None, "seen once"


@pytest.mark.parametrize(
    ("code", "why"),
    [("sys.exit(3)", " ended with status 3"), ("os.kill(os.getpid(), 9)", " was killed by SIGKILL")],
)
def test_the_status_of_a_process_that_this_one_started_is_told(code: str, why: str) -> None:
    with subprocess.Popen([sys.executable, "-c", f"import os, sys; {code}"]) as child:
        child.wait()
        others = Others(0, 2, children={1: child})
        others.ends[1].close()
        assert others.look() == End(1, why, 1)


def test_who_has_done_its_part_is_not_missed() -> None:
    others = Others(0, 3)
    others.ends[1].send(None)
    others.ends[1].close()
    assert others.look(3 * TICKS, rank2=5) is None


class OwnWork(Callback):
    """Rank 0's, while the others wait in the next collective."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.is_global_zero and trainer.global_step == 1:
            time.sleep(self.seconds)


@pytest.fixture
def pair() -> Iterator[tuple[Watch, Connection]]:
    """Rank 1, which looks at rank 0 by itself, and rank 0's connection."""
    others = Others(1, 2, limit=PATIENCE)
    others.watch.start()
    yield others.watch, others.ends[0]
    others.watch._over.set()


@pytest.mark.parametrize(
    ("error", "why", "status"),
    [
        (UserError("no such luck"), ": no such luck", 2),
        (KeyError("blocks"), ": KeyError: 'blocks'", 1),
        (
            ValueError("Caught ValueError in a worker.\nValueError: too\n  long"),
            ": ValueError: too long",
            1,
        ),
    ],
)
def test_what_a_process_raises_is_told_to_the_others(
    error: Exception, why: str, status: int, pair: tuple[Watch, Connection]
) -> None:
    watch, connection = pair
    connection.send(None)  # rank 0 has heard all
    assert watch.failed(error) == End(1, why, status)
    said = [connection.recv() for _ in iter(connection.poll, False)]
    assert [word for word in said if not isinstance(word, int)] == [End(1, why, status)]


def test_a_broken_collective_is_the_end_of_who_broke_it(pair: tuple[Watch, Connection]) -> None:
    watch, connection = pair
    connection.send(End(2, " was killed by SIGKILL"))
    broken = RuntimeError("[…/gloo/transport/tcp/pair.cc:545] Connection closed by peer")
    assert watch.failed(broken) == End(2, " was killed by SIGKILL")


def test_a_process_that_was_told_to_stop_breaks_collectives_without_a_traceback(
    pair: tuple[Watch, Connection], capsys: pytest.CaptureFixture[str]
) -> None:
    watch, connection = pair
    connection.send(None)
    assert watch.failed(RuntimeError("gloo: Connection closed by peer")) == End(0, ": told to stop")
    assert capsys.readouterr().err == "", "rank 0 tells it itself"


def test_a_broken_collective_of_nobodys_making_is_told_as_it_is(pair: tuple[Watch, Connection]) -> None:
    watch, _ = pair
    assert watch.failed(RuntimeError("gloo: no such device")).why == ": RuntimeError: gloo: no such device"


def test_a_limit_shorter_than_the_signs_of_life_is_refused() -> None:
    with pytest.raises(UserError, match=r"at least 2 seconds, but got 0\.1"):
        ProcessWatch(0.1)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_a_trainer_in_python_is_watched_too(tmp_path: Path) -> None:
    """Two processes train, and rank 0 alone stays longer than the limit for work of its own."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "limit_val_batches": 0}
    watch, slow = ProcessWatch(LIMIT), OwnWork(2 * LIMIT)
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_steps=2,
        enable_checkpointing=False,
        callbacks=[watch, slow],
        **quiet,  # type: ignore[arg-type]
    )
    trainer.fit(tiny.module(), tiny.digits())
    assert trainer.state.finished  # which comes from rank 0


def test_the_command_ends_with_the_status_of_a_users_error_of_any_process(tmp_path: Path) -> None:
    """Processes that start anew, as they do for a user."""
    broken = ["--data=tests.reliability.processes.FaultyDigits", "--data.fault=user's error", "--data.fault_rank=1"]
    broken += [f"--data.event={tmp_path / 'event'}", "--trainer.reload_dataloaders_every_n_epochs=1"]
    words = ["fit", *tiny.FLAGS, *broken, "--trainer.max_epochs=2", "--trainer.limit_train_batches=2"]
    words += ["--trainer.devices=2", "--trainer.strategy=ddp", f"--trainer.default_root_dir={tmp_path / 'runs'}"]
    done = subprocess.run([sys.executable, "-m", "layersim", *words], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.count("layersim: error: rank 1: no such luck") == done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
