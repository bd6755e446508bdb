"""`layersim fit` on a stream: of unknown length, stopped within an epoch and gone on with, on two processes too."""

import signal
from pathlib import Path

import datasets
import PIL.Image
import pytest
from sklearn.datasets import load_digits

from layersim.__main__ import main
from tests import tiny
from tests.commands.test_interruption import alike, on_two, only, sent

FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[*"0123456789"])})


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training images in three files, and others to validate on; in the one format that streams without a rest."""
    folder = tmp_path_factory.mktemp("digits")
    pixels, labels = load_digits(return_X_y=True)
    images = [PIL.Image.fromarray((row * 15).reshape(8, 8).astype("uint8")) for row in pixels[:413]]
    rows = datasets.Dataset.from_dict({"image": images, "label": labels[:413]}, FEATURES)
    splits = {"train": rows.select(range(317)), "validation": rows.select(range(317, 413))}
    datasets.DatasetDict(splits).save_to_disk(folder, num_shards={"train": 3, "validation": 1})
    return folder


def fit(digits: Path, root: Path, *more: str) -> list[str]:
    data = ["--data=layersim.data.Images", f"--data.path={digits}", "--data.val_split=validation"]
    data += ["--data.streaming=true", "--data.shuffle_buffer=60", "--data.batch_size=32"]
    return ["fit", *tiny.FLAGS, *data, "--trainer.max_epochs=2", f"--trainer.default_root_dir={root}", *more]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a resumed run has a directory of its own
@pytest.mark.parametrize(("workers", "epoch"), [(0, 1), (2, 0)])
def test_a_stream_that_is_stopped_goes_on_where_it_was(workers: int, epoch: int, digits: Path, tmp_path: Path) -> None:
    more = [f"--data.num_workers={workers}", "--data.train_transforms=[torchvision.transforms.v2.RandomHorizontalFlip]"]
    assert main(fit(digits, tmp_path / "whole", *more)) == 0
    assert main(fit(digits, tmp_path / "broken", *more, *sent(signal.SIGTERM, epoch=epoch))) == 128 + signal.SIGTERM
    first = only(tmp_path / "broken")
    assert main(["fit", "--resume", str(first)]) == 0
    assert alike(only(tmp_path / "broken", first), only(tmp_path / "whole"))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_two_processes_have_to_be_told_when_an_epoch_ends(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*fit(digits, tmp_path / "runs"), "--trainer.devices=2", "--trainer.strategy=ddp"]) == 2
    assert "none of 2 processes knows when the others' ends" in capsys.readouterr().err
    assert not [*(tmp_path / "runs").rglob("*")]
    # 8 batches of 32 are more rows than either has: the last ones are read anew
    words = fit(digits, tmp_path / "runs", "--trainer.limit_train_batches=8")
    assert [status for status, _ in on_two(tmp_path / "unbroken", words)] == [0, 0]
    (whole,) = {path.parent.parent for path in (tmp_path / "runs").rglob("last.ckpt")}
    stopped = fit(digits, tmp_path / "stopped", words[-1], *sent(signal.SIGTERM, epoch=1, rank=1))
    assert [status for status, _ in on_two(tmp_path / "killed", stopped)] == [143, 143]
    first = only(tmp_path / "stopped")
    assert [status for status, _ in on_two(tmp_path / "resumed", ["fit", "--resume", str(first)])] == [0, 0]
    assert alike(only(tmp_path / "stopped", first), whole)
