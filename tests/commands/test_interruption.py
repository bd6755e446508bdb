"""Ctrl-C says where the run is, and how it goes on; and it does go on so."""

import logging
import shlex
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from layersim.__main__ import main
from layersim.report.records import read_records
from tests import tiny

INTERRUPTED = 130


class Interrupt(Callback):
    """The user's Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a resumed run has a directory of its own
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_interrupted_training_goes_on_by_the_line_that_it_leaves(
    epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch.utilities.rank_zero"), "propagate", True)
    interrupt = ["--trainer.callbacks=tests.commands.test_interruption.Interrupt", f"--trainer.callbacks.epoch={epoch}"]
    options = [f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=2", "--trainer.limit_train_batches=2"]
    with caplog.at_level(logging.INFO):
        assert main(["fit", *tiny.FLAGS, *options, *interrupt]) == INTERRUPTED
    (told,) = (record.message for record in caplog.records if record.message.startswith("Interrupted in epoch"))
    (run,) = tmp_path.glob("default/*")
    assert f"Interrupted in epoch {epoch}, step {2 * epoch + 1}. The run is kept in {run}; it goes on from " in told
    words = shlex.split(told.rpartition("\n")[2])
    assert words[:4] == ["layersim", "fit", "--config", str(run / "config.yaml")]
    assert words[4:] == (["--ckpt_path", str(run / "checkpoints" / "last.ckpt")] if epoch else [])
    assert main([*words[1:], "--trainer.callbacks.epoch=9"]) == 0
    (again,) = set(tmp_path.glob("default/*")) - {run}
    assert [record.epoch for record in read_records(again / "layers.jsonl")] == [0, 1]
