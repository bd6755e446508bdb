"""Figures are drawn while the run goes on: which of them, by when, at which step they are logged, and what becomes of
those that cannot be written."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from callbacks import figures
from callbacks.figures import WAITING, Figures
from layersim.report.drawing import pictures

PICTURE = {
    "mark": "point",
    "data": {"values": [{"x": 1}]},
    "encoding": {"x": {"field": "x", "type": "quantitative"}},
}


def trainer(folder: Path, epoch: int = 0, loggers: tuple[Any, ...] = ()) -> Any:
    options = {"val_check_interval": 1.0, "check_val_every_n_epoch": 1, "current_epoch": epoch, "global_step": epoch}
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    return SimpleNamespace(default_root_dir=str(folder / "run"), state=state, loggers=loggers, **options)


def drawn(folder: Path, name: str) -> list[int]:
    """The epochs of which there are figures of a name."""
    return sorted(int(path.stem[-4:]) for path in (folder / "run/figures").glob(f"{name}-*.png"))


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Draws nothing until it is set."""
    free, real = Event(), pictures.vega

    def waits(*args: Any, **options: Any) -> bytes:
        free.wait()
        return real(*args, **options)

    monkeypatch.setattr(pictures, "vega", waits)
    return free


def test_nobody_waits_and_of_what_cannot_be_drawn_in_time_the_newest_is(
    tmp_path: Path, painter: Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(figures, "rank_zero_info", said.append)
    (tmp_path / "run").mkdir()
    owner = Figures()
    owner.add(trainer(tmp_path), "val/cka", PICTURE)
    while owner._asked[0].drawn.running() is False:
        time.sleep(0.001)  # the first one is being drawn, and is not given up
    for epoch in range(1, 20):
        owner.add(trainer(tmp_path, epoch), "val/cka", PICTURE)
        assert len(owner._asked) <= WAITING + 1, "the queue never grows"
    assert drawn(tmp_path, "val-cka") == []
    painter.set()
    owner.finish(trainer(tmp_path, 19))
    assert drawn(tmp_path, "val-cka") == [0, *range(20 - WAITING, 20)]
    assert said == [f"{19 - WAITING} figures of earlier epochs are left out: epochs are shorter than drawing."]
    assert not [*(tmp_path / "run/figures").glob(".*")]


def test_in_haste_the_newest_of_each_name_is_drawn(tmp_path: Path, painter: Event) -> None:
    (tmp_path / "run").mkdir()
    owner = Figures()
    for epoch in range(4):
        for name in ("cka", "cosine"):
            owner.add(trainer(tmp_path, epoch), name, PICTURE)
    painter.set()
    owner.finish(trainer(tmp_path, 3), in_haste=True)
    for name in ("cka", "cosine"):
        assert drawn(tmp_path, name)[-1] == 3
    assert owner._asked == []


def test_a_figure_is_logged_with_its_own_epoch_and_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(figures, "_log_image", lambda logger, one: told.append((logger, one.name, one.epoch, one.step)))
    (tmp_path / "run").mkdir()
    owner = Figures()
    for epoch in range(3):
        owner.add(trainer(tmp_path, epoch, ("logger",)), "cka", PICTURE)
    owner.finish(trainer(tmp_path, 7, ("logger",)))
    assert told == [("logger", "cka", epoch, epoch) for epoch in range(3)]


def test_figures_that_cannot_be_written_are_a_warning_and_a_directory_that_is_gone_stays_so(tmp_path: Path) -> None:
    for name in ("val/cka", "val/accuracy"):  # the same words, so that Python shows them once
        with pytest.warns(UserWarning, match="Figures") as told:
            Figures().add(trainer(tmp_path), name, PICTURE)
        (warned,) = told
        place = tmp_path / "run/figures"
        assert str(warned.message) == (
            f"Figures cannot be written to {place}, and the run goes on without: No such file or directory."
        )
    assert not [*tmp_path.iterdir()]


def test_a_directory_that_goes_before_a_figure_is_drawn_stays_gone(tmp_path: Path, painter: Event) -> None:
    (tmp_path / "run").mkdir()
    owner = Figures()
    owner.add(trainer(tmp_path), "val/cka", PICTURE)
    (tmp_path / "run").rename(tmp_path / "gone")
    painter.set()
    with pytest.warns(UserWarning, match="the run goes on without: No such file or directory"):
        owner.finish(trainer(tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_killed_run_leaves_no_painter_and_no_picture_by_its_name_that_is_cut(tmp_path: Path) -> None:
    program = f"""
import os, time
from pathlib import Path
from layersim.report.drawing.painter import _painter
from layersim.report.drawing.pictures import drawn_later
for number in range(1000):
    last = drawn_later({PICTURE!r}, Path({str(tmp_path)!r}, f"{{number}}.png"))
    if number == 5:
        last.result()
        print(_painter(os.getpid()).pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        painting = int(owner.stdout.readline())
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    while Path(f"/proc/{painting}").exists() and "Z" not in Path(f"/proc/{painting}/stat").read_text().split()[2]:
        time.sleep(0.01)
    whole = [path.read_bytes() for path in tmp_path.glob("[0-9]*.png")]
    assert 6 <= len(whole) < 1000
    assert all(image.startswith(b"\x89PNG") and image.endswith(b"IEND\xaeB`\x82") for image in whole)
