"""`fit --resume`: a killed run goes on by its directory alone, and tells each epoch once."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from layersim.__main__ import main
from layersim.commands.preflight import with_checkpoint
from layersim.errors import UserError
from layersim.report.records import read_records
from layersim.runs import resume
from layersim.runs.signals import Stopped
from tests import tiny
from tests.commands.test_interruption import on_two, only

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a resumed run has a directory of its own

DROPOUT = "--model.backbone.model_args.proj_drop_rate=0.2"
STEPS = ["ModelCheckpoint", "filename=step", "every_n_train_steps=2", "enable_version_counter=false"]
OPTIONS = [*tiny.FLAGS, DROPOUT, "--trainer.max_epochs=3", "--trainer.limit_train_batches=7", "--experiment=mine"]
OPTIONS += [f"--trainer.callbacks{'.' if number else '+='}{word}" for number, word in enumerate(STEPS)]
OPTIONS += ["--trainer.log_every_n_steps=1", "--trainer.callbacks+=tests.commands.test_resume.Kill"]


class Kill(Callback):
    """Ends the command in the middle of an epoch, where nothing is saved."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise Stopped(signal.SIGTERM)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two runs of one training, the second killed within its second epoch: `whole` and `killed`."""
    root = tmp_path_factory.mktemp("resume")
    for name, epoch, status in (("whole", 9, 0), ("killed", 1, 128 + signal.SIGTERM)):
        words = [*OPTIONS, f"--trainer.callbacks.epoch={epoch}", f"--trainer.default_root_dir={root}"]
        assert main(["fit", *words]) == status
        (run,) = (path for path in root.glob("mine/*") if path.name not in ("whole", "killed"))
        run.rename(run.with_name(name))
    return root


def resumed(root: Path, *words: str) -> Path:
    before = set(root.glob("mine/*"))
    assert main(["fit", *words, "--trainer.callbacks.epoch=9"]) == 0
    (run,) = set(root.glob("mine/*")) - before
    return run


def same(run: Path, whole: Path) -> None:
    one, other = (torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for path in (run, whole))
    assert all(value.equal(other[name]) for name, value in one.items())
    assert read_records(run / "layers.jsonl") == read_records(whole / "layers.jsonl")
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text(), "each epoch and step once"


def test_a_runs_directory_stands_for_its_last_checkpoint(root: Path) -> None:
    """Behind the option as in one word with it, and nowhere else."""
    run = root / "mine" / "whole"
    last = run / "checkpoints/last.ckpt"
    for typed, meant in (
        ([f"--ckpt_path={run}"], [f"--ckpt_path={last}"]),  # the last word of an option counts
        (["--ckpt_path", str(run), "--to", str(run)], [f"--ckpt_path={last}"]),
        ([f"--ckpt_path={last}"], []),
    ):
        verb, config, _, *words = with_checkpoint(["export", *typed])
        assert (verb, config, words) == ("export", "--config", [*typed, *meant])
    with pytest.raises(UserError, match="There is no checkpoint"):
        with_checkpoint(["export", f"--ckpt_path={root}"])


@pytest.mark.parametrize("checkpoint", ["last", "step"])
def test_a_killed_run_goes_on_by_its_directory(checkpoint: str, root: Path, tmp_path: Path) -> None:
    """From the end of its first epoch, and from a step that follows."""
    killed = root / "mine" / "killed"
    stamp = (killed / "checkpoints" / "last.ckpt").stat().st_mtime + (1 if checkpoint == "step" else -1)
    os.utime(killed / "checkpoints" / "step.ckpt", (stamp, stamp))
    same(resumed(root, f"--resume={killed}"), root / "mine" / "whole")


def test_an_epoch_whose_row_was_not_yet_written_is_told_by_its_checkpoint(root: Path) -> None:
    """Lightning saves an epoch's checkpoint before it logs the epoch's loss."""
    killed = root / "mine" / "killed"
    table, stamp = killed / "metrics.csv", (killed / "checkpoints" / "last.ckpt").stat().st_mtime - 1
    os.utime(killed / "checkpoints" / "step.ckpt", (stamp, stamp))
    written = table.read_text()
    header, *rows = written.splitlines(keepends=True)
    loss = header.strip().split(",").index("train/loss")
    unwritten = next(place for place, row in enumerate(rows) if row.split(",")[loss])
    table.write_text("".join([header, *rows[:unwritten]]))
    same(resumed(root, f"--resume={killed}"), root / "mine" / "whole")
    table.write_text(written)


def test_a_step_whose_row_was_not_yet_written_is_told_by_its_checkpoint(root: Path) -> None:
    """Lightning logs a step when its callbacks, one of which has saved it, are done."""
    killed = root / "mine" / "killed"
    table, stamp = killed / "metrics.csv", (killed / "checkpoints" / "last.ckpt").stat().st_mtime + 1
    os.utime(killed / "checkpoints" / "step.ckpt", (stamp, stamp))
    step = torch.load(killed / "checkpoints" / "step.ckpt", weights_only=True)["global_step"]
    written = table.read_text()
    header, *rows = written.splitlines(keepends=True)
    names = header.strip().split(",")
    of, loss = names.index("step"), names.index("train/loss_step")
    before = [row for row in rows if not (row.split(",")[loss] and int(row.split(",")[of]) >= step - 1)]
    assert len(before) < len(rows)
    table.write_text("".join([header, *before]))
    same(resumed(root, f"--resume={killed}"), root / "mine" / "whole")
    table.write_text(written)


def test_a_training_that_has_nothing_left_keeps_its_last_checkpoint(root: Path, tmp_path: Path) -> None:
    whole = root / "mine" / "whole"
    others = {path: path.read_bytes() for path in whole.glob("checkpoints/*.ckpt") if path.name.startswith("epoch")}
    last = (whole / "checkpoints" / "last.ckpt").read_bytes()
    (whole / "checkpoints" / "last.ckpt").rename(whole / "checkpoints" / "epoch=002.ckpt")
    run = resumed(root, f"--resume={whole}")
    for path, content in others.items():
        path.write_bytes(content)
    (whole / "checkpoints" / "last.ckpt").write_bytes(last)
    same(run, whole)


def test_a_sharded_models_last_checkpoint_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a folder."""
    source = tmp_path / "a" / "checkpoints" / "last.ckpt"
    source.mkdir(parents=True)
    for name in ("meta.pt", ".metadata", "__0_0.distcp"):
        (source / name).write_text(name)
    monkeypatch.setattr(resume, "read_checkpoint", lambda _: {"global_step": 3})
    trainer: Any = SimpleNamespace(default_root_dir=str(tmp_path / "b"), ckpt_path=str(source), is_global_zero=True)
    trainer.checkpoint_callbacks, trainer.global_step = [object()], 3
    resume.keep_finished(trainer)
    kept = tmp_path / "b" / "checkpoints" / "last.ckpt"
    assert [*kept.parent.iterdir()] == [kept]
    assert {file.name: file.read_text() for file in kept.iterdir()} == {
        file.name: file.name for file in source.iterdir()
    }


def test_the_last_run_of_the_experiment_is_found_and_a_damaged_checkpoint_passed_over(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed, whole = root / "mine" / "killed", root / "mine" / "whole"
    others = [path for path in root.glob("mine/*") if path not in (killed, whole)]
    for path in [whole, *others]:
        for checkpoint in path.glob("checkpoints/*.ckpt"):
            os.utime(checkpoint, (0, 0))
    (killed / "checkpoints" / "zzz.ckpt").write_bytes(b"cut short")
    torch.save({"state_dict": {}}, killed / "checkpoints" / "weights.ckpt")  # as a save_weights_only leaves it, newest
    for left in (killed / "checkpoints" / ".last.ckpt.01234567.part", killed / ".page.html.01234567.part"):
        left.write_bytes(b"half written when the run was killed")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("experiment: mine\n")
    try:
        words = ["--resume", "last", f"--config={recipe}", f"--trainer.default_root_dir={root}"]
        same(resumed(root, *words), whole)
        assert not [*root.rglob(".*.part")]
    finally:
        for name in ("zzz", "weights"):
            (killed / f"checkpoints/{name}.ckpt").unlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "nowhere"], "There is no checkpoint of the run nowhere that training can go on from"),
        (
            ["--resume=last", "--experiment=none"],
            "There is no checkpoint of a run in runs/none that training can go on",
        ),
        (["--resume", "--experiment=none"], "Expected a run's directory or `last` behind --resume, but got"),
        (["--resume=last", "--ckpt_path=a.ckpt"], "--resume finds its checkpoint by itself. Leave --ckpt_path or"),
    ],
)
def test_what_cannot_go_on_is_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_two_processes_go_on_within_an_epoch(tmp_path: Path) -> None:
    """Each with its own dropout; the last step's samples do not divide by two."""
    every = ["ModelCheckpoint", "every_n_train_steps=3", "save_top_k=-1", "filename={step:03d}"]
    kept = [f"--trainer.callbacks{'.' if number else '+='}{word}" for number, word in enumerate(every)]
    words = [*tiny.FLAGS, DROPOUT, *kept, "--data.batch_size=100", "--trainer.max_epochs=2"]
    home = f"--trainer.default_root_dir={tmp_path / 'runs'}"
    assert [status for status, _ in on_two(tmp_path / "whole", ["fit", *words, home])] == [0, 0]
    whole = only(tmp_path / "runs")
    for later in set((whole / "checkpoints").glob("*.ckpt")) - {whole / "checkpoints" / "step=003.ckpt"}:
        later.rename(tmp_path / later.name)
    assert [status for status, _ in on_two(tmp_path / "again", ["fit", f"--resume={whole}"])] == [0, 0]
    again = only(tmp_path / "runs", whole)
    (tmp_path / "last.ckpt").rename(whole / "checkpoints" / "last.ckpt")
    same(again, whole)
