"""Checkpoints are whole or absent, and a damaged one is found."""

import contextlib
import errno
import hashlib
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from layersim.errors import UserError
from layersim.runs.whole_checkpoints import WholeCheckpoints, is_whole, newest_whole
from tests import tiny
from tests.runs.test_checkpoints import flip

CONTENT = {"state_dict": {"weight": torch.arange(1000.0)}, "epoch": 3}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    WholeCheckpoints().save_checkpoint(CONTENT, tmp_path / "a/b/last.ckpt")
    return tmp_path / "a/b/last.ckpt"


def test_what_is_saved_is_loaded_by_everybody(saved: Path) -> None:
    ours, theirs = WholeCheckpoints().load_checkpoint(saved), torch.load(saved, weights_only=True, mmap=True)
    for loaded in (ours, theirs):
        torch.testing.assert_close(loaded, CONTENT, rtol=0, atol=0)
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_the_archives_comment_is_the_checksum_of_all_before_it(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        comment = archive.comment
        assert archive.testzip() is None
    content = saved.read_bytes().removesuffix(comment)
    assert comment.decode() == f"sha256={hashlib.sha256(content).hexdigest()}"


def test_every_flipped_bit_is_found(saved: Path) -> None:
    """The last 95 bytes, in which the checksum is told, bit by bit; of the rest 200 at random."""
    bits, generator = 8 * saved.stat().st_size, random.Random(0)
    for bit in [*range(bits - 8 * 95, bits), *generator.sample(range(bits), 200)]:
        flip(saved, bit)
        assert is_whole(saved) is False, bit
        with pytest.raises(UserError, match=r"is damaged: its checksum is of another content\. No other beside it"):
            WholeCheckpoints().load_checkpoint(saved)
        flip(saved, bit)
    assert is_whole(saved)


def test_without_the_checksum_most_flips_are_not_found(tmp_path: Path) -> None:
    """The control: torch loads weights with a flipped bit as if nothing were."""
    path = tmp_path / "plain.ckpt"
    torch.save(CONTENT, path)
    at = path.read_bytes().index(CONTENT["state_dict"]["weight"][500:].numpy().tobytes())  # type: ignore[index]
    flip(path, 8 * at + 3)
    assert torch.load(path)["state_dict"]["weight"][500] != 500


@pytest.mark.parametrize("size", [0, 1, 60, 71, 73, 1000])
def test_a_cut_file_is_never_taken_for_whole(saved: Path, size: int) -> None:
    saved.write_bytes(saved.read_bytes()[:size])
    assert not is_whole(saved)
    with pytest.raises(UserError, match=r"is not a readable checkpoint .* No other beside it is whole"):
        WholeCheckpoints().load_checkpoint(saved)


@pytest.mark.parametrize("other_end", [False, True])
def test_no_end_that_is_cut_or_written_over_is_passed_over(saved: Path, other_end: bool) -> None:
    """All weights are still there where only the checksum is lost, and torch reads them."""
    content, generator, readable = saved.read_bytes(), random.Random(0), []
    for lost in range(1, 130):
        saved.write_bytes(content[:-lost] + generator.randbytes(lost) * other_end)
        with pytest.raises(UserError, match=r"is damaged|is not a readable checkpoint"):
            WholeCheckpoints().load_checkpoint(saved)
        with contextlib.suppress(Exception):
            readable.append(torch.load(saved))
    assert len(readable) >= 70, "the control"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_ends_half_way_leaves_the_old_file_whole(
    saved: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = saved.read_bytes()

    def digest(content: memoryview) -> None:  # asked for once the content is written, before the checksum is
        (part,) = saved.parent.glob(".last.ckpt.*.part")
        assert part.stat().st_size
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "sha256", digest)
        with pytest.raises(type(error)) as raised:
            WholeCheckpoints().save_checkpoint({"state_dict": {"weight": torch.ones(10_000)}}, saved)
    assert raised.value is error  # what the system says, not what torch makes of it
    assert saved.read_bytes() == before
    assert newest_whole(saved.parent) == saved
    assert list(saved.parent.iterdir()) == [saved]


def test_a_file_copied_or_linked_alone_is_known(saved: Path, tmp_path: Path) -> None:
    saved.rename(tmp_path / "moved.ckpt")
    (tmp_path / "linked.ckpt").symlink_to("moved.ckpt")
    assert is_whole(tmp_path / "linked.ckpt")


def test_a_checkpoint_without_checksum_is_taken_with_one_line_of_notice(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(CONTENT, tmp_path / "plain.ckpt")
    with caplog.at_level("INFO"):
        for _ in range(3):
            assert WholeCheckpoints().load_checkpoint(tmp_path / "plain.ckpt")["epoch"] == 3
    said = caplog.text + capfd.readouterr().err
    assert said.count("plain.ckpt has no checksum to tell whether it is whole") == 1


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    for age, name in enumerate(("a", "b", "c")):
        WholeCheckpoints().save_checkpoint(CONTENT, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (age, age))
    torch.save(CONTENT, tmp_path / "unknown.ckpt")
    assert newest_whole(tmp_path) == tmp_path / "c.ckpt"
    flip(tmp_path / "c.ckpt", 4000)
    (tmp_path / "last.ckpt").symlink_to("gone.ckpt")
    assert newest_whole(tmp_path) == tmp_path / "b.ckpt"
    assert newest_whole(tmp_path, other_than=tmp_path / "b.ckpt") == tmp_path / "a.ckpt"


def test_a_script_plugs_it_in(tmp_path: Path) -> None:
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    kept = ModelCheckpoint(tmp_path / "kept", save_last="link")
    trainer = Trainer(
        max_epochs=2, limit_train_batches=1, callbacks=[kept], plugins=[WholeCheckpoints()],
        enable_model_summary=False, default_root_dir=tmp_path, **options
    )  # fmt: skip
    trainer.fit(tiny.module(), tiny.digits())
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert all(is_whole(path) for path in (tmp_path / "kept").iterdir())
    assert list((tmp_path / "kept").glob("last.ckpt"))
