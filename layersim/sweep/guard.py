"""A command that ends with the program that started it: `python guard.py WORDS …` runs it until its own input closes.

It stands between a sweep's driver and a trial. The driver holds the other end of its input, which the system closes
whatever becomes of the driver.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

GRACE = 5.0
"""Seconds that a trial has to end by itself once the driver is no more."""


def main(words: list[str]) -> int:
    """Runs a command in a session of its own, which takes over the files that are open here, the ledger's lock among
    them; gives its exit status. What it has started is gone when this returns."""
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True, close_fds=False)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    threading.Thread(target=_end_with_the_driver, args=[process], daemon=True).start()
    status = process.wait()
    _kill(process.pid)  # its loaders' workers and other ranks
    return 128 - status if status < 0 else status


def _end_with_the_driver(process: subprocess.Popen[bytes]) -> None:
    os.read(0, 1)  # the driver writes nothing: its end is closed
    process.terminate()
    time.sleep(GRACE)
    _kill(process.pid)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it has ended, or is just ending (macOS)
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
