"""A training on data, and a verb that is given them otherwise; what a run leaves behind where it goes another way."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from layersim.__main__ import main
from layersim.commands import given_data
from layersim.errors import UserError
from layersim.module import LayerwiseModule
from tests import tiny

DRAWN = ("--data.seed=1", "--data.val_fraction=0.4")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    assert (
        main(["fit", *tiny.FLAGS, "--data.seed=1", "--data.val_fraction=0.4", f"--trainer.default_root_dir={root}"])
        == 0
    )
    (path,) = root.rglob("last.ckpt")
    return path


def test_a_split_drawn_otherwise_than_for_the_training(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring it is told, and a promise on it refused: 218 of 360 samples had been trained on, without a word."""
    then, now = tiny.digits(seed=1, val_fraction=0.4), tiny.digits()
    then.setup(), now.setup()
    seen = len({*then.splits["train"].index} & {*now.splits["val"].index})
    given = [*tiny.FLAGS, f"--ckpt_path={checkpoint}", f"--trainer.default_root_dir={tmp_path}"]
    said: list[str] = []
    monkeypatch.setattr(given_data, "rank_zero_info", said.append)
    assert main(["validate", *given]) == 0
    told = f"{seen} of the 360 samples of the val split were trained on, with seed=1, val_fraction=0.4"
    assert said == [f"{told}: what is measured on them says nothing of new ones."]
    assert main(["exits", *given, "--risk=0.3"]) == 2
    assert f"{told}: what is chosen on them promises nothing" in capsys.readouterr().err
    assert main(["validate", *given, *DRAWN]) == 0
    assert len(said) == 1


@pytest.mark.parametrize("option", ["--risk=0.02,0.1", "--risk_of=disagreement", "--method=crc", "--confidence=0.5"])
def test_a_budget_beside_a_promise_is_refused(
    option: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["exits", f"--ckpt_path={checkpoint}", "--budget=0.5", option]) == 2
    name = option.partition("=")[0]
    assert f"A budget promises nothing: {name} says nothing beside it" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_fast_run_ends_well(verb: str, tmp_path: Path) -> None:
    assert main([verb, *tiny.FLAGS, f"--trainer.default_root_dir={tmp_path}", "--trainer.fast_dev_run=true"]) == 0


class Reads(Callback):
    """How many samples the training data give to others at each moment."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def read(self, trainer: Trainer, *_: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.found.append(sum(len(batch["label"]) for batch in data.train_dataloader()))

    on_validation_epoch_start = on_train_epoch_end = read

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        if number == 2:
            self.read(trainer)


def test_training_data_are_whole_for_whoever_reads_them() -> None:
    """Within an epoch the rest of it was given, and none at its end and after the training."""
    data, reads = tiny.digits(batch_size=200), Reads()
    quiet: Any = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=2, num_sanity_val_steps=0, callbacks=reads, enable_model_summary=False, **quiet)
    trainer.fit(tiny.module(), data)
    whole = len(data.splits["train"])
    assert reads.found == [whole] * 6
    assert sum(len(batch["label"]) for batch in data.train_dataloader()) == whole


def test_averaged_weights_are_what_the_last_checkpoint_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """StochasticWeightAveraging puts them in the model's place when the training has ended."""
    kept: dict[str, torch.Tensor] = {}

    def at_the_end(module: LayerwiseModule) -> None:
        kept.update({name: value.clone() for name, value in module.state_dict().items()})

    monkeypatch.setattr(LayerwiseModule, "on_fit_end", at_the_end)
    averaging = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"]
    given = [*tiny.FLAGS, "--trainer.max_epochs=3", f"--trainer.default_root_dir={tmp_path}", *averaging]
    assert main(["fit", *given, "--trainer.callbacks.swa_epoch_start=1", "--trainer.callbacks.device=null"]) == 0
    (path,) = tmp_path.rglob("last.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(state[name], value) for name, value in kept.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--model.lr_scheduler_interval=step"],
            "waits for val/loss of an epoch. Leave --model.lr_scheduler_int",
        ),
        (["--trainer.limit_val_batches=0"], "waits for val/loss, but nothing is validated"),
    ],
)
def test_a_plateau_that_is_never_seen_is_refused_at_the_start(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*tiny.FLAGS, "--model.lr_scheduler=ReduceLROnPlateau", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *given, *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric:RuntimeWarning")
def test_a_plateau_waits_where_validation_counts_across_epochs(tmp_path: Path) -> None:
    given = [*tiny.FLAGS, "--model.lr_scheduler=ReduceLROnPlateau", f"--trainer.default_root_dir={tmp_path}"]
    across = ["--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=30", "--trainer.max_epochs=3"]
    assert main(["fit", *given, *across]) == 0


def test_several_loaders_are_refused_in_one_line() -> None:
    data, quiet = tiny.digits(), {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    data.setup()
    with pytest.raises(UserError, match="Expected one loader, but got several"):
        Trainer(**quiet).validate(tiny.module(), [data.val_dataloader()] * 2)  # type: ignore[arg-type]


def test_images_of_whole_numbers_are_refused() -> None:
    image = torch.zeros(2, 1, 8, 8)
    for wrong in (image.byte(), image.double()):
        with pytest.raises(UserError, match=re.escape(f"but the data gives {wrong.dtype}")):
            tiny.module()({"image": wrong, "label": torch.tensor([0, 1])})


def test_a_recipe_without_data_leaves_the_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "quiet.yaml"
    recipe.write_text("trainer:\n  enable_progress_bar: false\n  logger: false\n  accelerator: cpu\n")
    given = [f"--config={recipe}", f"--ckpt_path={checkpoint}", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["validate", *given]) == 0
    (kept,) = tmp_path.rglob("config.yaml")
    assert yaml.safe_load(kept.read_text())["data"]["init_args"]["seed"] == 1
