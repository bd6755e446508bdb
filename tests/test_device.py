"""What has to hold on a GPU as on the CPU; here on the CPU, and on a GPU where there is one (`pytest -m cuda`).

In order of importance, for the day that a machine is lent for some minutes.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn.functional import cross_entropy

from layersim.__main__ import main
from layersim.exits import Confidence, EarlyExit
from layersim.heads import SharedHead
from layersim.objectives import layer_weights
from layersim.objectives.vocabulary_loss import layered_cross_entropy
from layersim.report.records import read_records
from tests import tiny
from tests.commands.test_interruption import alike, only, sent
from tests.similarity.every_measure import METRICS

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a resumed run has a directory of its own
on_cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_cuda)])


@pytest.fixture(autouse=True)
def _alone_again() -> Iterator[None]:
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


ACCELERATOR = {"cpu": "cpu", "cuda": "gpu"}


def fit(root: Path, device: str, *more: str) -> list[str]:
    flags = [flag for flag in tiny.FLAGS if "accelerator" not in flag and "max_epochs" not in flag]
    options = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=4", "--trainer.log_every_n_steps=1"]
    options += [f"--trainer.accelerator={ACCELERATOR[device]}", "--trainer.devices=1"]
    return ["fit", *flags, *options, f"--trainer.default_root_dir={root}", *more]


@each_device
def test_a_training_measures_what_it_measures_on_the_cpu(device: str, tmp_path: Path) -> None:
    records = []
    for each in ("cpu", device):
        assert main(fit(tmp_path / f"{each}-{len(records)}", each)) == 0
        run = only(tmp_path / f"{each}-{len(records)}")
        records.append(read_records(run / "layers.jsonl"))
    for one, other in zip(*records, strict=True):
        assert one.quantities.keys() == other.quantities.keys()
        assert one.quantities["loss"].values == pytest.approx(other.quantities["loss"].values, rel=2e-3)
        for name in ("cosine", "cka"):
            for row, expected in zip(one.quantities[name].values, other.quantities[name].values, strict=True):
                assert row == pytest.approx(expected, abs=5e-3)


@each_device
def test_a_stopped_training_goes_on_bit_by_bit(device: str, tmp_path: Path) -> None:
    exact = ["--trainer.deterministic=true", "--model.backbone.model_args.proj_drop_rate=0.2"]
    assert main(fit(tmp_path / "whole", device, *exact)) == 0
    assert main(fit(tmp_path / "cut", device, *exact, *sent(signal.SIGTERM, epoch=1))) == 128 + signal.SIGTERM
    first = only(tmp_path / "cut")
    assert main(["fit", "--resume", str(first)]) == 0
    assert alike(only(tmp_path / "cut", first), only(tmp_path / "whole"))


@each_device
@pytest.mark.parametrize("options", [["--trainer.precision=bf16-mixed"], ["--trainer.strategy=ddp"]])
def test_a_training_by_halves_and_one_of_a_group_of_processes(options: list[str], device: str, tmp_path: Path) -> None:
    """The group has one process: it is the back end (NCCL, gloo) that is tried."""
    assert main(fit(tmp_path, device, *options)) == 0
    assert len(read_records(only(tmp_path) / "layers.jsonl")) == 2


@each_device
@pytest.mark.parametrize("measure", METRICS)
def test_every_measure_is_the_cpu_s_in_float64(measure: str, device: str) -> None:
    torch.manual_seed(0)
    base = torch.randn(128, 24, dtype=torch.float64)
    features = torch.stack([base + scale * torch.randn_like(base) for scale in (0.5, 1, 2, 4)])
    index = torch.arange(128)
    exact, measured = METRICS[measure](), METRICS[measure]().to(device)
    for start in (0, 64):
        exact.update(features[:, start : start + 64], index[start : start + 64])
        measured.update(features[:, start : start + 64].float().to(device), index[start : start + 64])
    torch.testing.assert_close(measured.compute().cpu().double(), exact.compute().double(), rtol=0, atol=2e-5)


@each_device
def test_the_vocabulary_s_loss_and_its_gradients(device: str) -> None:
    torch.manual_seed(0)
    features, weight = torch.randn(3, 70, 16, dtype=torch.float64), torch.randn(501, 16, dtype=torch.float64)
    targets = torch.randint(0, 501, (70,))
    weights = layer_weights("linear", 3)
    exact = [features.clone().requires_grad_(), weight.clone().requires_grad_()]
    losses = [cross_entropy(layer @ exact[1].T, targets) for layer in exact[0]]
    expected = sum((share * loss for share, loss in zip(weights, losses, strict=True)), torch.zeros(()))
    expected.backward()
    ours = [value.float().to(device).requires_grad_() for value in (features, weight)]
    loss = layered_cross_entropy(ours[0], ours[1], None, targets.to(device), weights)[0]
    loss.backward()
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-5, atol=0)
    for one, other in zip(ours, exact, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.cpu().double(), other.grad, rtol=1e-4, atol=1e-6)


@each_device
def test_exits_answer_as_on_the_cpu(device: str) -> None:
    torch.manual_seed(0)
    backbone = tiny.backbone().eval()
    head = SharedHead(backbone).eval()
    images = torch.randn(40, 1, 8, 8)
    answers = []
    for each in ("cpu", device):
        leave = EarlyExit(backbone.to(each), head.to(each), Confidence(), 0.12)
        answers.append(leave({"image": images.to(each)}))
    one, other = answers
    assert torch.equal(one.predictions.cpu(), other.predictions.cpu())
    assert torch.equal(one.exit_layers.cpu(), other.exit_layers.cpu())
