"""What a terminal shows: one line of progress however narrow it is, the first screen, and no advertisement."""

import io
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console

from callbacks import LayerAccuracyMonitor
from layersim.commands.console import ProgressLine, in_few_lines, quiet, unsaid
from tests import tiny


def lines(bar: RichProgressBar, width: int) -> list[str]:
    assert bar.progress is not None
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(bar.progress.get_renderable())
    return [line for line in console.export_text().splitlines() if line.strip()]


def trained(bar: RichProgressBar, path: Path) -> RichProgressBar:
    """After an epoch that was validated."""
    try:
        Trainer(
            default_root_dir=path,
            callbacks=[LayerAccuracyMonitor(), bar],
            max_epochs=1,
            limit_train_batches=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        ).fit(tiny.module(), tiny.digits())
    finally:
        rich.reconfigure()  # Lightning's bar replaces the process's console
    return bar


def test_the_bar_stays_one_line_at_80_columns(tmp_path: Path) -> None:
    nowhere: dict[str, Any] = {"console_kwargs": {"file": io.StringIO()}}
    ours = trained(ProgressLine(**nowhere), tmp_path)
    (line,) = lines(ours, 80)
    assert re.fullmatch(r"Epoch 0/0  .+ 2/2 0:00:\d\d [\d.]+it/s loss \d\.\d{3} accuracy 0\.\d{3} *", line)
    assert ours.progress is not None
    ours.progress.update(ours.progress.task_ids[-1], total=12345, completed=12344, visible=True)
    for width in (120, 80, 60, 40):
        assert len(lines(ours, width)) == len([task for task in ours.progress.tasks if task.visible])
    theirs = trained(RichProgressBar(**nowhere), tmp_path)
    assert len(lines(theirs, 80)) > 1, "the control: Lightning's breaks its metrics into lines"


def test_names_that_would_be_alike_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {"v_num": "1a2b", "train/loss_step": 2.5, "val/loss": 2.0, "val/accuracy": 0.25, "count": 3}
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *_: shown)
    bar = ProgressLine()
    assert bar.get_metrics(Trainer(logger=False, accelerator="cpu"), tiny.module()) == {}
    assert bar._metrics == "train/loss_step 2.500 val/loss 2.000 accuracy 0.250 count 3"


def test_only_what_lightning_brought_itself_is_replaced() -> None:
    bar, own = RichProgressBar(), RichModelSummary(max_depth=2)
    other = LayerAccuracyMonitor()
    assert [type(call) for call in in_few_lines([other, bar], [other])] == [LayerAccuracyMonitor, ProgressLine]
    assert in_few_lines([other, bar, own], [other, bar, own]) == [other, bar, own]
    assert in_few_lines([own], []) == [], "the first screen tells what the model is"


def test_advertisements_are_left_out_and_the_rest_is_said(caplog: pytest.LogCaptureFixture) -> None:
    said = ["💡 Tip: try installing a thing", "TPU available: False, using: 0 TPU cores", "[rank: 1] Seed set to 3"]
    said += ["GPU available: False, used: False", "`Trainer.fit` stopped: `max_epochs=2` reached.", "A fact."]
    with caplog.at_level(logging.INFO):
        quiet()
        Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
        for text in said:
            rank_zero_info(text)
    assert caplog.messages == ["A fact."]
    with unsaid("A "), caplog.at_level(logging.INFO):
        rank_zero_info("A fact.")
    rank_zero_info("A fact.")
    assert caplog.messages == ["A fact."] * 2


def test_a_warning_is_one_line_unless_it_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", before := warnings.formatwarning)
    monkeypatch.setenv("LAYERSIM_DEBUG", "1")
    quiet()
    assert warnings.formatwarning is before
    monkeypatch.delenv("LAYERSIM_DEBUG")
    quiet()
    assert warnings.formatwarning("Look out.", UserWarning, "file.py", 3, "line") == "UserWarning: Look out.\n"


def test_a_fit_says_what_the_model_is_and_advertises_nothing(
    layersim: Callable[..., Path], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shown = [flag for flag in tiny.FLAGS if "model_summary" not in flag]
    with caplog.at_level(logging.INFO):
        layersim("fit", *shown, "--trainer.limit_train_batches=1")
    parameters = sum(parameter.numel() for parameter in tiny.module().parameters())
    said = "\n".join([*capfd.readouterr(), *caplog.messages])
    assert said.startswith("Train    TimmBackbone vit_tiny_patch16_224, 3 layers; objective Aligned, head")
    assert f"\nSize     {parameters:,} parameters, all trained; on cpu, precision 32-true\n" in said
    for unwanted in ("FLOPs", "Tip", "litlogger", "TPU", "GPU", "Seed set", "stopped:"):
        assert unwanted not in said
