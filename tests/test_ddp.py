"""Two real processes against one: the same numbers, with samples that do not divide by two.

What is compared went through the command, Lightning's DDP strategy and gloo, in processes of its own.
"""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests import tiny
from tests.processes import last_record, run_command


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


def test_measurements_are_equal_to_a_millionth(pair: tuple[Path, Path]) -> None:
    one, two = map(last_record, pair)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    for measure in ("cosine", "cka"):
        torch.testing.assert_close(
            torch.tensor(two["similarity"][measure], dtype=torch.float64),
            torch.tensor(one["similarity"][measure], dtype=torch.float64),
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
    """Heads that a step does not read have no gradient; the command has DDP look for them."""
    separate = ["--model.head=SeparateHeads", "--model.objective=Alternating", "--trainer.limit_train_batches=4"]
    one_batch = "--data.eval_batch_size=400"  # of which each process has its share
    directory = run_command("fit", 2, tmp_path, *tiny.FLAGS, *separate, one_batch)
    assert last_record(directory)["step"] == 4
    assert last_record(directory)["samples"] == 360
