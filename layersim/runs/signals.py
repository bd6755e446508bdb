"""Signals that ask a program to end: it leaves by an exception, with the status that shells expect."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(SystemExit):
    """A signal asked the program to end: raised wherever it stands. Its code is 128 and the signal's number."""

    told = False
    """Whether a line has said so."""

    def __init__(self, number: int) -> None:
        self.status = 128 + number
        super().__init__(self.status)
        self.name = signal.Signals(number).name


def handle(numbers: Iterable[int], receive: Callable[[int], None]) -> dict[int, Any]:
    """Has signals call `receive` in this process, but for those that it was told to ignore, as by nohup.

    Processes that are forked from this one end by SIGTERM and SIGHUP as if nothing were handled, and pass over the
    others: a loader's worker has to live until its training has finished the step. Returns what `restore` takes.
    """
    here = os.getpid()

    def received(number: int, frame: object) -> None:
        if os.getpid() == here:
            receive(number)
        elif number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread():
        return {}  # no other thread may
    taken = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    return {number: signal.signal(number, received) for number in taken}


def restore(before: Mapping[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


def next_sigint_ends() -> None:
    """After a signal that asks to end, a SIGINT ends the program wherever it stands, without a word.

    Not under torchrun, which hands each Ctrl-C of the terminal on to processes that had it already.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN and "TORCHELASTIC_RUN_ID" not in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """In here SIGINT, SIGTERM and SIGHUP raise `Stopped`."""

    def leave(number: int) -> None:
        next_sigint_ends()
        raise Stopped(number)

    before = handle(ENDING, leave)
    try:
        yield
    finally:
        restore(before)
