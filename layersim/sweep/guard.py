"""A process that starts a sweep's trials, one after the other, and ends with the program that started it.

    python -P -m layersim.sweep.guard [WARM_UP]     then a line for each trial: {"words": […], "output": PATH}

It stands between the driver and the trials, and tells each one's exit status. The driver holds the other end of its
input, which the system closes whatever becomes of the driver. A trial is a fork, a Python script as if it was run anew,
which finds imported what the function of this name imports.
"""

import contextlib
import json
import os
import pkgutil
import runpy
import select
import signal
import sys
import time

GRACE = 5.0
"""Seconds that a trial has to end by itself once the driver is no more."""
_LOOK_SECONDS = 0.05


def main(warm_up: str | None = None) -> None:
    """Runs what the driver tells, until there is no driver. A SIGTERM is for the trial."""
    if warm_up is not None:
        pkgutil.resolve_name(warm_up)()
    running: list[int] = []

    def hand_on(number: int, _: object) -> None:
        for trial in running:
            os.kill(trial, number)

    signal.signal(signal.SIGTERM, hand_on)
    told = os.fdopen(0, "rb", buffering=0, closefd=False)
    while line := told.readline():
        if not (trial := os.fork()):
            _become(**json.loads(line))
        running[:] = [trial]
        status = _watched(trial, running)
        with contextlib.suppress(BrokenPipeError):  # there is no driver any more, as the next line's end tells
            os.write(1, f"{status}\n".encode())


def _watched(trial: int, running: list[int]) -> int:
    """A trial's exit status. What it has started is gone when this returns; and so is the trial itself once the driver,
    which says nothing meanwhile, is no more."""
    end = None
    while not (ended := os.waitpid(trial, os.WNOHANG))[0]:
        if end is None and select.select([0], [], [], _LOOK_SECONDS)[0]:
            end = time.monotonic() + GRACE
            os.kill(trial, signal.SIGTERM)
        elif end is not None:
            time.sleep(_LOOK_SECONDS)
            if time.monotonic() > end:
                _kill(trial)
    running.clear()
    _kill(trial)  # its loaders' workers and other ranks
    status = os.waitstatus_to_exitcode(ended[1])
    return 128 - status if status < 0 else status


def _become(words: list[str], output: str) -> None:
    """Makes a trial of this process: in a session of its own, which takes over the files that are open here, the
    ledger's lock among them."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, stream in enumerate((os.open(os.devnull, os.O_RDONLY), said, said)):
        os.dup2(stream, number)
    sys.argv = words
    sys.path[:0] = [os.path.dirname(words[0])]
    runpy.run_path(words[0], run_name="__main__")
    sys.exit()


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it has ended, or is just ending (macOS)
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
