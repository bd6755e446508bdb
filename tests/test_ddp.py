"""Two real processes against one: the same numbers, with samples that do not divide by two.

What is compared went through the command, Lightning's DDP strategy and gloo, in processes of its own.
"""

import csv
import re
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer

from layersim.errors import UserError
from layersim.heads import SeparateHeads
from layersim.module import LayerwiseModule
from layersim.objectives import CosineRegularized, UncertaintyWeighted
from layersim.report.records import read_records
from layersim.runs.checkpoints import read_checkpoint
from tests import tiny
from tests.processes import PATIENCE, last_record, run_command


def weights(directory: Path) -> dict[str, torch.Tensor]:
    state = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return {name: tensor.double() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same training by plain SGD, whose steps are its gradients, on one process and on two.

    14 steps of 104 samples and a ragged one of 89, which is 45 and 44; 252 validation samples in batches of 50, of
    which one process reads 150 and the other 102.
    """
    root = tmp_path_factory.mktemp("ddp")
    common = ["--model.optimizer=SGD", "--model.optimizer.lr=0.05", "--data.eval_batch_size=50"]
    common += ["--data.val_fraction=0.14", "--model.backbone.name=beit_base_patch16_224"]  # a model with buffers
    one = run_command("fit", 1, root, *tiny.FLAGS, *common, "--data.batch_size=104")
    two = run_command("fit", 2, root, *tiny.FLAGS, *common, "--data.batch_size=52")
    return one, two


def test_counts_are_equal_exactly(pair: tuple[Path, Path]) -> None:
    one, two = map(last_record, pair)
    assert one["samples"] == 252
    for key in ("samples", "step", "saturation", "accuracy", "saturated_early", "mean_saturation_layer"):
        assert one[key] == two[key], key
    first, second = (read_records(directory / "layers.jsonl")[-1].quantities for directory in pair)
    for key in ("effective_depth", "best_layer", "behind_best"):
        assert first[key] == second[key], key
    assert first["behind_best"].interval is not None, "over the same samples"


def test_measurements_are_equal_to_a_millionth(pair: tuple[Path, Path]) -> None:
    one, two = map(last_record, pair)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    for measure in ("cosine", "cka"):
        torch.testing.assert_close(
            torch.tensor(two[measure], dtype=torch.float64),
            torch.tensor(one[measure], dtype=torch.float64),
            rtol=0,
            atol=1e-6,
        )


def test_the_aligned_losss_gradients_are_equal(pair: tuple[Path, Path]) -> None:
    """After one epoch of SGD the weights differ from one process's by rounding alone."""
    one, two = map(weights, pair)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6, msg=name)


def test_predictions_are_whole_and_in_order(tmp_path: Path) -> None:
    flags = [*(flag for flag in tiny.FLAGS if "max_epochs" not in flag), "--data.eval_batch_size=50"]
    one, two = (
        pq.read_table(run_command("predict", processes, tmp_path, *flags) / "predictions.parquet")
        for processes in (1, 2)
    )
    assert one.num_rows == 360
    assert one.drop(["confidence"]).equals(two.drop(["confidence"]))
    expected = torch.tensor(one["confidence"].to_pylist())
    torch.testing.assert_close(torch.tensor(two["confidence"].to_pylist()), expected)


def test_separate_heads_train_on_two_processes(tmp_path: Path) -> None:
    """Heads that a step does not read have no gradient; the module has DDP look for them, whoever chose it."""
    separate = ["--model.head=SeparateHeads", "--model.objective=Alternating", "--trainer.limit_train_batches=4"]
    one_batch = "--data.eval_batch_size=400"  # of which each process has its share
    directory = run_command("fit", 2, tmp_path, *tiny.FLAGS, *separate, one_batch, strategy="strategy=auto")
    assert last_record(directory)["step"] == 4
    assert last_record(directory)["samples"] == 360


def forked(path: Path, module: LayerwiseModule, batch_size: int = 64, **options: Any) -> None:
    """Four steps of a Python Trainer, on two processes forked from this one unless told otherwise."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        default_root_dir=path,
        accelerator="cpu",
        limit_val_batches=0,
        enable_checkpointing=False,
        **{"devices": 2, "strategy": "ddp_fork", "max_steps": 4, **options},
        **quiet,
    )
    trainer.fit(module, tiny.digits(batch_size=batch_size))


def test_a_penalty_does_not_read_the_heads_of_the_layers_it_pulls(tmp_path: Path) -> None:
    module = tiny.module(objective=CosineRegularized(), head=SeparateHeads, optimizer=partial(torch.optim.SGD, lr=0.1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    forked(tmp_path, module)  # the weights come back
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert {"head.classifiers.2.weight", "backbone.model.blocks.0.mlp.fc1.weight"} <= moved
    assert not {"head.classifiers.0.weight", "head.classifiers.1.weight"} & moved


def test_learned_weights_have_the_gradients_of_one_process(tmp_path: Path) -> None:
    """An epoch of plain SGD, whose last batch leaves the processes shares of 45 and 44 samples."""
    learned = []
    for options in ({"batch_size": 52}, {"batch_size": 104, "devices": 1, "strategy": "auto"}):
        module = tiny.module(objective=UncertaintyWeighted(), optimizer=partial(torch.optim.SGD, lr=0.05))
        forked(tmp_path, module, **options, max_steps=14)
        learned.append({name: value.double() for name, value in module.state_dict().items()})
    two, one = learned
    assert two["objective.log_variances"].abs().min() > 0.1, "the control: they are learned"
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6, msg=name)


class Told(LayerwiseModule):
    """Writes down what each process was told, and waits for the other before the first ends them both."""

    notes: Path

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        if self.global_rank == 1 and batch_idx == 2:
            batch["image"] = batch["image"] * torch.nan
        try:
            return super().training_step(batch, batch_idx)
        except UserError as error:
            (self.notes / f"{self.global_rank}.txt").write_text(str(error))
            end = monotonic() + PATIENCE
            while len(list(self.notes.glob("*.txt"))) < 2 and monotonic() < end:
                sleep(0.01)
            raise


def test_a_loss_that_is_no_number_in_one_process_stops_both(tmp_path: Path) -> None:
    module = Told(tiny.backbone())
    module.notes = tmp_path
    with pytest.raises(Exception, match="The loss is nan in epoch 0, step 2"):
        forked(tmp_path, module)
    one, two = (path.read_text() for path in sorted(tmp_path.glob("*.txt")))
    assert "The loss is nan in epoch 0, step 2; " in one
    assert "First not finite: in another process (batch 2)" in one
    assert re.search(r"First not finite: its image, of sample \d+ \(batch 2\)", two)


@pytest.mark.parametrize(
    "strategy", ["strategy=ddp", "strategy.class_path=lightning.pytorch.strategies.ModelParallelStrategy"]
)
def test_two_processes_go_on_within_a_group_of_batches(strategy: str, tmp_path: Path) -> None:
    """From a checkpoint of a validation, with the gradient of one batch of two; with DDP on one process, too."""
    flags = [*tiny.FLAGS, "--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--trainer.accumulate_grad_batches=2"]
    flags += ["--trainer.limit_train_batches=6", "--trainer.val_check_interval=3", "--data.max_eval_samples=40"]
    flags += ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.filename={step}"]
    flags += ["--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.save_last=true"]
    half, whole = "--data.batch_size=52", "--data.batch_size=104"
    unbroken = run_command("fit", 2, tmp_path / "unbroken", *flags, half, strategy=strategy)
    middle = unbroken / "checkpoints/step=1.ckpt"
    ddp = strategy == "strategy=ddp"
    gradients = read_checkpoint(middle)["place"]["gradients"]
    assert len(gradients) == (2 if ddp else 1)
    on = run_command("fit", 2, tmp_path / "on", *flags, half, f"--ckpt_path={middle}", strategy=strategy)
    ended, expected = (read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"] for run in (on, unbroken))
    assert all(torch.equal(ended[name], value) for name, value in expected.items())
    rows, whole_rows = (list(csv.DictReader((run / "metrics.csv").read_text().splitlines())) for run in (on, unbroken))
    assert rows == whole_rows
    assert len([row for row in rows if row["val/loss"]]) == 2
    if ddp:
        alone = run_command("fit", 1, tmp_path / "alone", *flags, whole, f"--ckpt_path={middle}")
        for name, value in weights(alone).items():
            torch.testing.assert_close(value, expected[name].double(), rtol=1e-5, atol=1e-6, msg=name)
