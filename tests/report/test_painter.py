"""Pictures are drawn in a process of their own: a process that is forked from one that has drawn can draw too."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layersim.report.drawing.painter import _painter, vega

DOT = {"data": {"values": [{"x": 1}]}, "mark": "point", "encoding": {"x": {"field": "x", "type": "quantitative"}}}


def test_a_forked_process_draws_too() -> None:
    expected = vega("vegalite_to_png", vl_spec=DOT)
    assert expected.startswith(b"\x89PNG")
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.SimpleQueue[bytes] = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put(vega("vegalite_to_png", vl_spec=DOT)))
    child.start()
    assert answers.get() == expected
    child.join()
    assert vega("vegalite_to_png", vl_spec=DOT) == expected, "and the first one goes on"


def test_what_vega_refuses_is_told_and_the_next_picture_is_drawn() -> None:
    with pytest.raises(
        RuntimeError, match=r"Vega did not draw the picture: Vega-Lite to PNG conversion failed: TypeError: [^\n]+$"
    ):
        vega("vegalite_to_png", vl_spec=DOT | {"mark": "worm"})
    assert vega("vegalite_to_png", vl_spec=DOT).startswith(b"\x89PNG")


def test_a_process_that_has_ended_is_told_and_started_anew() -> None:
    vega("vegalite_to_png", vl_spec=DOT)
    painter = _painter(os.getpid())
    painter.kill()
    painter.wait()
    with pytest.raises(ChildProcessError, match="Vega's process has ended with status -9"):
        vega("vegalite_to_png", vl_spec=DOT)
    assert vega("vegalite_to_png", vl_spec=DOT).startswith(b"\x89PNG")


def test_it_ends_without_a_word_with_the_process_that_it_draws_for(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, time; from layersim.report.drawing.painter import _painter, vega; "
        f"vega('vegalite_to_png', vl_spec={DOT!r}); painter = _painter(os.getpid()); "
        "os.kill(painter.pid, signal.SIGSTOP); painter.stdin.write(sys.argv[1].encode()); painter.stdin.flush(); "
        "print(painter.pid, flush=True); time.sleep(600)"
    )
    asked = json.dumps(["vegalite_to_png", {"vl_spec": DOT}]) + "\n"
    for half_way in ("", asked):
        with (tmp_path / "said").open("w") as said:
            owner = subprocess.Popen([sys.executable, "-c", script, half_way], stdout=subprocess.PIPE, stderr=said)
        with owner:
            assert owner.stdout is not None
            painter = int(owner.stdout.readline())
            owner.send_signal(signal.SIGKILL)
            owner.wait()
        os.kill(painter, signal.SIGCONT)
        while Path(f"/proc/{painter}").exists() and "Z" not in Path(f"/proc/{painter}/stat").read_text().split()[2]:
            time.sleep(0.01)
        assert (tmp_path / "said").read_text() == ""
