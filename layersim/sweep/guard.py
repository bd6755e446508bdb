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
    signal.signal(signal.SIGTERM, lambda *_: _send(process.pid, signal.SIGTERM))
    threading.Thread(target=_end_with_the_driver, args=[process.pid], daemon=True).start()
    status = process.wait()
    _send(process.pid, signal.SIGKILL)  # its loaders' workers and other ranks
    return 128 - status if status < 0 else status


def _end_with_the_driver(group: int) -> None:
    os.read(0, 1)  # the driver writes nothing: its end is closed
    _send(group, signal.SIGTERM)
    time.sleep(GRACE)
    _send(group, signal.SIGKILL)


def _send(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it has ended, or is just ending (macOS)
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
