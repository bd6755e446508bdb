"""A signal ends the command with its status and a line; a training saves first, and goes on by that line."""

import logging
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from layersim.__main__ import main
from layersim.report.records import read_records
from layersim.runs.whole_checkpoints import is_whole
from tests import tiny
from tests.processes import spread_over
from tests.reliability.children import Child, command


class Signal(Callback):
    """Sends a process of the command a signal at a hook, once, where an epoch is."""

    def __init__(
        self,
        number: int,
        hook: str = "on_train_batch_start",
        epoch: int = 0,
        times: int = 1,
        rank: int = 0,
        fails: bool = False,
    ) -> None:
        self.number, self.epoch, self.times, self.rank, self.fails = number, epoch, times, rank, fails
        setattr(self, hook, self._send)

    def state_dict(self) -> dict[str, Any]:
        return {"times": self.times}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.times = state_dict["times"]

    def _send(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **more: Any) -> None:
        if trainer.current_epoch == self.epoch and not trainer.sanity_checking and self.times:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
            self.times = 0
            if self.fails:
                raise RuntimeError("a worker has died")


def sent(number: int, **where: Any) -> list[str]:
    options = [f"--trainer.callbacks.{name}={value}" for name, value in where.items()]
    return [
        "--trainer.callbacks+=tests.commands.test_interruption.Signal",
        f"--trainer.callbacks.number={number}",
        *options,
    ]


def options(root: Path, epochs: int = 2) -> list[str]:
    lengths = [f"--trainer.max_epochs={epochs}", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2"]
    return [*tiny.FLAGS, f"--trainer.default_root_dir={root}", "--trainer.log_every_n_steps=1", *lengths]


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state


def alike(run: Path, whole: Path) -> bool:
    """Whether two runs have come to the same weights, records and rows."""
    same = all(value.equal(weights(run)[name]) for name, value in weights(whole).items())
    records = [[one.to_line() for one in read_records(each / "layers.jsonl")] for each in (run, whole)]
    rows = [(each / "metrics.csv").read_text() for each in (run, whole)]
    return same and records[0] == records[1] and rows[0] == rows[1]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("unbroken")
    assert main(["fit", *options(root)]) == 0
    (run,) = root.glob("default/*")
    return run


@pytest.fixture(autouse=True)
def _listening() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore SIGINT, which the command then does too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


Said = Callable[[str], list[str]]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Said]:
    """The lines so far that begin so."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch.utilities.rank_zero"), "propagate", True)
    with caplog.at_level(logging.INFO):
        yield lambda begin: [each.message for each in caplog.records if each.message.startswith(begin)]


def only(root: Path, *others: Path) -> Path:
    (run,) = {path.parent for path in root.glob("default/*/config.yaml")} - {*others}
    return run


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a resumed run has a directory of its own
@pytest.mark.parametrize(
    ("number", "where", "step"),
    [
        (signal.SIGINT, {"epoch": 0}, 1),
        (signal.SIGTERM, {"epoch": 1}, 4),
        (signal.SIGHUP, {"epoch": 1, "hook": "on_validation_batch_start"}, 6),
    ],
)
def test_a_stopped_training_goes_on_by_the_line_that_it_leaves(
    number: signal.Signals, where: dict[str, Any], step: int, unbroken: Path, tmp_path: Path, said: Said
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, here too
    try:
        assert main(["fit", *options(tmp_path), *sent(number, **where)]) == 128 + number
    finally:
        signal.signal(signal.SIGHUP, before)
    run = only(tmp_path)
    saved = run / "checkpoints/stopped.ckpt"
    assert is_whole(saved)
    (told,) = said("Stopped by")
    assert told.startswith(f"Stopped by {number.name} in epoch {where['epoch']}, step {step}: {saved} is whole; it ")
    assert len([*run.glob("layers.jsonl")]) == where["epoch"], "an epoch that was not measured has no record"
    (line,) = re.findall(r"`(layersim fit .*)`", told)
    assert shlex.split(line) == ["layersim", "fit", "--resume", str(run)]
    assert main(shlex.split(line)[1:]) == 0
    assert alike(only(tmp_path, run), unbroken)


def test_what_the_same_signal_breaks_is_no_failure_of_the_run(
    tmp_path: Path, said: Said, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where Ctrl-C reaches a loader's worker that is just being started."""
    assert main(["fit", *options(tmp_path), *sent(signal.SIGINT, epoch=1, fails=True)]) == 128 + signal.SIGINT
    (told,) = said("Stopped by")
    run = only(tmp_path)
    kept = run / "checkpoints/last.ckpt"
    cut = "step 3, which was cut off by a worker has died"
    assert told == f"Stopped by SIGINT in epoch 1, {cut}: {kept} is whole; it goes on by `layersim fit --resume {run}`."
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["validate", "predict", "exits"])
def test_another_verb_ends_with_a_line_and_leaves_nothing_half_written(
    verb: str, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = "on_predict_batch_start" if verb == "predict" else "on_validation_batch_start"
    words = [verb, *tiny.FLAGS, f"--trainer.default_root_dir={tmp_path}", *sent(signal.SIGTERM, hook=hook)]
    words += [f"--ckpt_path={unbroken / 'checkpoints/last.ckpt'}", *["--risk=0.05"] * (verb == "exits")]
    assert main(words) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith("layersim: stopped by SIGTERM\n")
    (run,) = tmp_path.glob("default/*")
    assert {path.name for path in run.rglob("*")} <= {"config.yaml", "environment.json"}


SCONTROL = """#!/bin/sh
echo "$@" >> {called}
"""


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:The `srun` command is available")
def test_a_job_of_slurm_saves_is_queued_again_and_goes_on_by_itself(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    called = tmp_path / "called"
    for name in ("scontrol", "srun"):
        (tmp_path / name).write_text(SCONTROL.format(called=called))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job = {"JOB_ID": "4071", "NTASKS": "1", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    words = ["fit", *options(tmp_path), *sent(signal.SIGUSR1, epoch=1)]
    assert main(words) == 128 + signal.SIGUSR1
    assert called.read_text() == "requeue 4071\n"
    first = only(tmp_path)
    assert is_whole(first / "checkpoints/stopped.ckpt")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "4072")
    other = main([*words, "--trainer.max_epochs=1"])
    assert other == 0
    assert said("SLURM has started this job again, but it had saved nothing yet")
    another = only(tmp_path, first)
    monkeypatch.setenv("SLURM_JOB_ID", "4071")
    assert main(words) == 0
    assert f"The run {first} goes on from stopped.ckpt, step 4." in said("The run")
    assert alike(only(tmp_path, first, another), unbroken)
    assert called.read_text() == "requeue 4071\n", "once"


@pytest.mark.filterwarnings("ignore:SLURM did not queue the job 7_2 again")
def test_a_job_that_is_not_queued_again_has_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for name, value in {"JOB_ID": "9", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "2", "NTASKS": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    words = ["fit", *options(tmp_path), *sent(signal.SIGUSR2)]
    environment = "lightning.fabric.plugins.environments.SLURMEnvironment"
    plugin = [f"--trainer.plugins={environment}", "--trainer.plugins.requeue_signal=SIGUSR2"]
    with pytest.warns(UserWarning, match="SLURM did not queue the job 7_2 again: .*scontrol"):
        assert main([*words, *plugin]) == 128 + signal.SIGUSR2
    assert is_whole(only(tmp_path) / "checkpoints/stopped.ckpt")


def test_a_second_interruption_ends_at_once(tmp_path: Path) -> None:
    """Twice within one step, which the first would have finished."""
    root = tmp_path / "runs"
    child = Child(tmp_path / "said", command, ["fit", *options(root), *sent(signal.SIGINT, times=2)])
    assert child.wait() == -signal.SIGINT, "what a shell tells as 130"
    assert "training ends after this step" in child.said
    assert not [*root.glob("*/*/checkpoints/*")]


on_two = partial(spread_over, 2)


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_batch_start"])
def test_two_processes_stop_after_the_same_step_whichever_was_asked(hook: str, tmp_path: Path) -> None:
    (status, _), _ = on_two(tmp_path / "unbroken", ["fit", *options(tmp_path / "runs")])
    assert status == 0
    whole = only(tmp_path / "runs")
    words = ["fit", *options(tmp_path / "runs"), *sent(signal.SIGTERM, hook=hook, epoch=1, rank=1)]
    (status, said), (other, _) = on_two(tmp_path / "stopped", words)
    assert (status, other) == (143, 143)
    step = 4 if hook == "on_train_batch_start" else 6
    assert said.count(f"Stopped by SIGTERM in epoch 1, step {step}: ") == 1
    run = only(tmp_path / "runs", whole)
    assert len(read_records(run / "layers.jsonl")) == 1
    (status, _), _ = on_two(tmp_path / "resumed", ["fit", "--resume", str(run)])
    assert status == 0
    assert alike(only(tmp_path / "runs", whole, run), whole)
