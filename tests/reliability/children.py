"""The command in processes of its own that start in a moment: they are forked from one that has imported everything."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from layersim.report.drawing import painter
from tests.reliability import painting

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.reliability.warm"])


class Child:
    """A function in a process of its own, the head of a process group; what it prints goes to a file.

    Args:
        output: where what it prints goes.
        function: importable.
        *args: what it is called with; what can be pickled.
        where: its working directory.
        environment: variables beside those of this process.
    """

    def __init__(
        self,
        output: Path,
        function: Callable[..., Any],
        *args: Any,
        where: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.output = output
        told = (output, where or Path.cwd(), environment or {}, function, args)
        self.process: BaseProcess = _SERVER.Process(target=_begin, args=told)
        self.process.start()
        # whichever thread starts the next one asks all of these how they ended: of two that ask at once one is told 255
        multiprocessing.process._children.discard(self.process)  # type: ignore[attr-defined]

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def wait(self, seconds: float = 600) -> int:
        """Its exit status, negative where a signal ended it, as `subprocess` has it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"still there after {seconds} s: {self.said[-2000:]}")
        return self.process.exitcode

    def wait_for(self, there: Callable[[], bool], seconds: float = 600) -> bool:
        """Waits until something is so; whether it came to be while the process lived."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.is_alive():
            if there():
                return True
            time.sleep(0.002)
        return there()

    def kill(self) -> None:
        """Ends it and all that it started, at once."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.process.kill()
        self.process.join()


def command(words: Sequence[str]) -> None:
    """`layersim WORDS`, for a child: ends with the command's status."""
    from layersim.__main__ import main

    sys.exit(main(words))


def _begin(
    output: Path, where: Path, environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has ignored by what runs in its background
    multiprocessing.set_start_method("fork", force=True)  # else its loader workers import everything anew
    os.chdir(where)
    os.environ |= environment
    if "RANK" in environment:  # which Lightning reads when it is imported, as it was before this process began
        rank_zero_only.rank = int(environment["RANK"])  # type: ignore[attr-defined]
    painter._painter = painting.painter
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    function(*args)
