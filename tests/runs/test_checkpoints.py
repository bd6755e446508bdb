"""Checkpoints are looked at before anything is built on them."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from layersim.errors import UserError
from layersim.runs.checkpoints import LastCheckpoint, check_fits, read_checkpoint
from layersim.runs.models import newest_of
from layersim.runs.whole_checkpoints import WholeCheckpoints
from tests import tiny


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_the_first_tensor_that_is_not_finite_is_named(broken: float) -> None:
    module = tiny.module()
    state = {name: values.clone() for name, values in module.state_dict().items()}
    check_fits(state, module, "a.ckpt")
    state["backbone.model.blocks.1.mlp.fc2.bias"][3] = broken
    state["backbone.model.blocks.2.mlp.fc1.bias"][:2] = broken
    message = "backbone.model.blocks.1.mlp.fc2.bias has 1 of 16 values that are NaN or infinite"
    with pytest.raises(UserError, match=re.escape(message)) as found:
        check_fits(state, module, "a.ckpt")
    assert "a.ckpt" in str(found.value)
    assert "\n" not in str(found.value)


def test_a_buffer_may_be_infinite() -> None:
    """As masks are."""
    module = tiny.module()
    module.register_buffer("mask", torch.full((2,), -torch.inf))
    check_fits(module.state_dict(), module, "a.ckpt")


@pytest.mark.parametrize("verb", [["validate"], ["exits"], ["export", "--to=out"], ["fit"], ["predict"]])
def test_every_verb_refuses_weights_that_are_no_numbers(
    verb: list[str], layersim: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tiny.module().state_dict()
    state["head.classifier.weight"][0, 0] = torch.nan
    torch.save({"state_dict": state}, tmp_path / "nan.ckpt")
    flags = [flag for flag in tiny.FLAGS if "max_epochs" not in flag]
    layersim(*verb, *flags, "--ckpt_path=nan.ckpt", status=2)
    assert "values that are NaN or infinite" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"nan.ckpt"}


LACKING: dict[str, Callable[[dict[str, Any]], Any]] = {
    "lacks optimizer_states": lambda checkpoint: checkpoint.pop("optimizer_states"),
    "lacks optimizer_states,": lambda checkpoint: checkpoint.update(optimizer_states=[]),
    "lacks optimizer_states, as": lambda checkpoint: checkpoint["optimizer_states"][0].pop("param_groups"),
    "lacks lr_schedulers": lambda checkpoint: checkpoint.pop("lr_schedulers"),
    "lacks callbacks": lambda checkpoint: checkpoint.pop("callbacks"),
    "lacks loops": lambda checkpoint: checkpoint["loops"].pop("fit_loop"),
    "lacks epoch, global_step": lambda checkpoint: (checkpoint.pop("epoch"), checkpoint.pop("global_step")),
    "does not tell which Lightning": lambda checkpoint: checkpoint.pop("pytorch-lightning_version"),
    "written by Lightning 1.9.5, and": lambda checkpoint: checkpoint.update({"pytorch-lightning_version": "1.9.5"}),
    "written by Lightning 99.0, and": lambda checkpoint: checkpoint.update({"pytorch-lightning_version": "99.0"}),
    "holds no hyper_parameters": lambda checkpoint: checkpoint.update(hyper_parameters=[1]),
    "holds no layersim": lambda checkpoint: checkpoint.update(layersim=None),
    "holds no state_dict": lambda checkpoint: checkpoint.update(state_dict=[1]),
    "lacks optimizer_states, lr_schedulers, callbacks, loops, as where": lambda checkpoint: [
        checkpoint.pop(entry) for entry in ("optimizer_states", "lr_schedulers", "callbacks", "loops")
    ],
}
"""What the error says, and what was done to the checkpoint."""
SHORT = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2", "--trainer.log_every_n_steps=1"]
PLAIN = ["--without=SimilarityHeatmaps,ExitCurveMonitor,ReportWriter", *SHORT]


def test_a_checkpoint_that_training_cannot_go_on_from_is_refused_in_one_line(
    layersim: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = layersim("fit", *tiny.FLAGS, *PLAIN)
    last = run / "checkpoints/last.ckpt"
    for said, damage in LACKING.items():
        checkpoint = torch.load(last, weights_only=True)
        damage(checkpoint)
        torch.save(checkpoint, "other.ckpt")
        capsys.readouterr()
        layersim("fit", *tiny.FLAGS, *PLAIN, "--ckpt_path=other.ckpt", status=2)
        assert_one_line(capsys.readouterr().err, said)
    given = {
        "objective.log_variances is missing. Use the objective (--model.objective)": (
            "--model.objective=layersim.objectives.UncertaintyWeighted"
        ),
        "Use the number of classes": "--model.backbone.num_classes=7",
        "blocks.3.norm1.weight is missing": (
            "--model.backbone.model_args={patch_size: 4, embed_dim: 16, depth: 5, num_heads: 2}"
        ),
    }
    for said, flag in given.items():
        layersim("fit", *tiny.FLAGS, *PLAIN, f"--ckpt_path={last}", flag, status=2)
        assert_one_line(capsys.readouterr().err, said)
    assert [path.parent for path in Path("runs").rglob("config.yaml")] == [run.relative_to(Path.cwd())]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a resumed run has a directory of its own
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 2}, 10),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, 15),
        ({"max_epochs": 3, "check_val_every_n_epoch": 4}, 15),
        ({"max_epochs": 1, "val_check_interval": 0.4}, 5),
        ({"max_steps": 10, "val_check_interval": 4, "check_val_every_n_epoch": None}, 10),
        ({"max_steps": 7}, 7),
    ],
)
def test_the_last_checkpoint_is_of_the_trainings_end(options: dict[str, Any], steps: int, tmp_path: Path) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "limit_val_batches": 1}
    trainer = Trainer(default_root_dir=tmp_path, callbacks=[LastCheckpoint()], **quiet, **options)
    trainer.fit(tiny.module(), tiny.digits(batch_size=50, max_train_samples=250))
    assert trainer.global_step == steps
    (saved,) = tmp_path.rglob("*.ckpt")
    assert (saved.name, read_checkpoint(saved)["global_step"]) == ("last.ckpt", steps)


def test_a_last_checkpoint_of_within_an_epoch_is_not_lost(tmp_path: Path) -> None:
    """Where a training is killed between a validation and the end of its epoch."""
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "limit_val_batches": 1}
    quiet |= {"max_epochs": 1, "val_check_interval": 2}
    trainer = Trainer(default_root_dir=tmp_path, callbacks=[LastCheckpoint(), Killed()], **quiet)
    with pytest.raises(KeyError, match="killed"):
        trainer.fit(tiny.module(), tiny.digits(batch_size=50, max_train_samples=250))
    (saved,) = tmp_path.rglob("*.ckpt")
    assert read_checkpoint(saved)["global_step"] == 2


class Killed(Callback):
    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            raise KeyError("killed")


def test_a_runs_directory_stands_for_where_it_was_stopped_if_that_is_newer(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert newest_of(tmp_path) == folder / "last.ckpt"
    for time, name in enumerate(["stopped.ckpt", "last.ckpt", "stopped.ckpt"]):
        (folder / name).touch()
        os.utime(folder / name, (time, time))
        assert newest_of(tmp_path) == folder / name


def test_hyper_parameters_of_somebody_elses_do_not_matter_to_resuming(layersim: Callable[..., Path]) -> None:
    last = layersim("fit", *tiny.FLAGS, *PLAIN) / "checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    del checkpoint["hyper_parameters"]["optimizer"]
    torch.save(checkpoint, last.with_name("other.ckpt"))
    ends = []
    for path in (last, last.with_name("other.ckpt")):
        run = layersim("fit", *tiny.FLAGS, *PLAIN, f"--ckpt_path={path}", "--trainer.max_epochs=2")
        ends.append(torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    "verb", [["validate"], ["exits"], ["export", "--to=out"], ["fit", "--trainer.max_epochs=2"], ["transfer"]]
)
def test_every_verb_finds_a_flipped_bit_and_names_the_newest_whole_checkpoint(
    verb: list[str], layersim: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = {"state_dict": tiny.module().state_dict()}
    for age, name in enumerate(("old", "whole", "damaged", "cut")):
        WholeCheckpoints().save_checkpoint(state, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (age, age))
    torch.save(state, tmp_path / "unknown.ckpt")
    flip(tmp_path / "damaged.ckpt", 8 * 20_000)
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "cut.ckpt").read_bytes()[:-200])
    flags = [] if verb[0] == "transfer" else [flag for flag in tiny.FLAGS if "max_epochs" not in flag]
    for name, why in {"damaged": "is damaged", "cut": "is not a readable checkpoint"}.items():
        layersim(*verb, *flags, f"--ckpt_path={tmp_path / name}.ckpt", status=2)
        assert_one_line(capsys.readouterr().err, f"{name}.ckpt {why}", f"{tmp_path / 'whole.ckpt'}: give that")
    assert not (tmp_path / "runs").exists()


def assert_one_line(printed: str, *said: str) -> None:
    """Of its own: the console wraps what it prints."""
    assert "Traceback" not in printed
    error = " ".join(printed[printed.index("layersim: error:") :].split())
    for part in said:
        assert part in error


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
