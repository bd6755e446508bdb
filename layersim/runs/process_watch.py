"""What one process of several sees of the others, and what it does where one of them ends.

A thread of each process sends a sign of life to rank 0, and rank 0 to each, over a connection that closes where a
process dies, is silent where one is stopped, and carries the reason where one raises. With the sign go the number of
collectives that the process has begun, and the seconds that it has computed: where nobody's collectives grow, who is
behind rank 0 and does not compute keeps the others waiting.

What is not seen: rank 0 that hangs while its threads live looks like work that it does alone (a figure, an upload),
which may take as long as it likes; the process group's own `timeout`, half an hour, ends the others then. So it does
where all processes have begun a collective that cannot end, and where one computes without end. Loader workers end
with their process where they are forked and the system is Linux; elsewhere torch's own workers look for their parent
every five seconds.
"""

import contextlib
import ctypes
import math
import multiprocessing.util
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from subprocess import Popen, TimeoutExpired

from layersim.errors import UserError

_TICK = 0.5
"""Seconds between two signs of life."""
_WORKS = 0.2
"""Share of a processor from which on a process counts as computing."""
GRACE = 4.0
"""Seconds that a process has to end in order, once another's end is known; the thread ends it then."""
Sign = tuple[int, float]
"""Of life: collectives that a process has begun, and the seconds that it and what it has started have computed."""
PARENT = "LAYERSIMPARENT"
"""Tells the processes that DDP starts which one started them."""


@dataclass(frozen=True)
class End:
    """How one process ended before the run did: what it did, as it goes on behind «rank 1», and what all exit with."""

    rank: int
    why: str
    status: int = 1


class Watch(threading.Thread):
    """The thread that watches the other processes, and ends this one where another ended.

    After `limit` seconds without a sign of life a process counts as stopped; children, by rank, this one started.
    """

    def __init__(self, rank: int, limit: float, children: dict[int, Popen[bytes]] | None = None) -> None:
        super().__init__(daemon=True, name="process-watch")
        self.rank = rank
        self.children = children or {}
        self.end: End | None = None
        self.connected = False
        self._limit = limit
        self._peers: dict[int, Connection] = {}
        self._pids: dict[int, int] = {}
        self._collectives: Callable[[], int] = int
        self._left: set[int] = set()
        """Peers that have said their last word, or died."""
        self._last_said = False
        self._silent: dict[int, int] = {}
        self._begun: dict[int, int] = {}
        self._worked: dict[int, float] = {}
        self._worked_before: dict[int, float] = {}
        self._before: dict[int, int] = {}
        self._still = 0
        self._parent = _who_started_this()
        self._lock = threading.RLock()
        self._known = threading.Event()
        self._over = threading.Event()

    def connect(self, peers: dict[int, Connection], pids: dict[int, int], collectives: Callable[[], int]) -> None:
        """Watches these from now on, by rank: rank 0 has connections to all others, each other to rank 0; pids are of
        those that run on this machine; `collectives` tells how many this process has begun."""
        self._pids, self._collectives, self._silent = pids, collectives, dict.fromkeys(peers, 0)
        self._begun = dict.fromkeys(peers, 0)
        self._peers, self.connected = peers, True
        multiprocessing.util.register_after_fork(self, _die_with_parent)

    def run(self) -> None:
        patience: float = math.inf
        while not self._over.wait(_TICK):  # counted in ticks: a whole job that is stopped and goes on is not late
            self._send((self._collectives(), sum(os.times()[:4])))
            if (end := self._look()) and self._tell(end):
                patience = GRACE
            patience -= _TICK
            if self.end and patience < 0:
                self.end_children(0)
                os._exit(self.end.status)

    def failed(self, error: BaseException) -> End:
        """Tells the others that this process's main thread raised; the process ends by itself from here. Returns whose
        end that is: this process's own, or another's, whose death broke a collective of this one."""
        if re.search(r"gloo|nccl|connection|socket|timed out", str(error), re.IGNORECASE):
            self._known.wait(2)
            if self._left:
                self._tell(End(min(self._left), ": told to stop"))
        with self._lock:
            if self.end is None:
                kind, user = f"{type(error).__name__}: ", isinstance(error, UserError)
                said = " ".join(str(error).rpartition(kind)[2].split())  # a loader's worker tells its traceback before
                self.end = End(self.rank, f": {said}" if user else f": {kind}{said}", 2 if user else 1)
                self._send(self.end)
        self._settle(2)
        self._over.set()
        return self.end

    def leave(self) -> None:
        """Tells the others that this process was told to stop."""
        self._send(None)
        self._settle(2 * _TICK)
        self._over.set()

    def finish(self) -> End | None:
        """Waits until the others have done their part as well. Returns how one did not."""
        if self.rank:
            self._send(None)
            self._settle(math.inf)  # rank 0 has work of its own
        elif (late := self._settle(self._limit)) and self.end is None:
            self._kill(late[0])
            self._tell(End(late[0], f" stopped answering: the others were done {self._limit:g} s ago"))
        self._send(None)
        if end := self.end_children(self._limit):
            self._tell(end)
        self._over.set()
        return self.end

    def end_children(self, seconds: float) -> End | None:
        """Waits for the processes that this one started, and ends those that stay. Returns how a first one failed."""
        ends = []
        for rank, child in self.children.items():
            with contextlib.suppress(TimeoutExpired):
                if child.wait(seconds):
                    ends.append(End(rank, self._how_it_died(rank)))
                continue
            child.kill()
            ends.append(End(rank, f" was still there after {seconds:g} s"))
        return ends[0] if ends else None

    def _settle(self, seconds: float) -> list[int]:
        """Waits until the others have said their last word: what a process that exits has not read takes with it what
        it had sent. Returns who has not, then or when an end became known."""
        ticks, before = count(), self.end
        while (those := sorted(self._peers.keys() - self._left)) and next(ticks) * _TICK / 5 < seconds:
            if self._over.wait(_TICK / 5) or self.end is not before:
                break
        return those

    def _send(self, message: Sign | End | None) -> None:
        with self._lock:
            for connection in self._peers.values() if not self._last_said else ():
                with contextlib.suppress(OSError):  # who is gone is found when listened to
                    connection.send(message)
            self._last_said |= not isinstance(message, tuple)

    def _look(self) -> End | None:
        """The first end of another process that there is to see."""
        dead = [rank for rank, child in self.children.items() if child.poll()]
        heard = [self._hear(rank, connection) for rank, connection in self._peers.items() if rank not in self._left]
        died = [End(rank, self._how_it_died(rank), 2 if self.children[rank].poll() == 2 else 1) for rank in dead]
        first = self.rank - int(os.environ.get("LOCAL_RANK", 0))
        orphan = End(first, " died" if first != self.rank else " lost the process that started it")
        lost = [orphan] if self._parent not in (None, os.getppid()) else []
        return next((end for end in [*heard, *died, *lost, self._late()] if end), None)

    def _hear(self, rank: int, connection: Connection) -> End | None:
        self._silent[rank] += 1
        try:
            while connection.poll():
                said: Sign | End | None = connection.recv()
                if not isinstance(said, tuple):
                    self._left.add(rank)
                    return said
                self._silent[rank], (self._begun[rank], self._worked[rank]) = 0, said
        except (EOFError, OSError):
            self._left.add(rank)
            return End(rank, self._how_it_died(rank))
        if self._silent[rank] * _TICK > self._limit + 2 * (self.rank > 1):  # rank 1 is the one who tells of rank 0
            self._kill(rank)
            return End(rank, f" stopped answering: no sign of life for {self._limit:g} s (ProcessWatch.limit)")
        return None

    def _late(self) -> End | None:
        """Who is behind rank 0, and nobody goes on: rank 0 itself may be behind, with work of its own."""
        if self.rank:
            return None
        begun = {rank: number for rank, number in self._begun.items() if rank not in self._left}
        begun[0] = self._collectives()
        last = min(begun, key=lambda rank: begun[rank])
        works = self._worked.get(last, 0.0) - self._worked_before.get(last, 0.0) > _WORKS * _TICK
        self._still = self._still + 1 if begun == self._before and not works else 0
        self._before, self._worked_before = begun, dict(self._worked)
        if self._still * _TICK <= self._limit or begun[last] == begun[0]:
            return None
        self._kill(last)
        return End(last, f" stopped answering: the others have waited {self._limit:g} s (ProcessWatch.limit)")

    def _how_it_died(self, rank: int) -> str:
        with contextlib.suppress(TimeoutExpired, KeyError):
            status = self.children[rank].wait(1)
            return f" was killed by {signal.Signals(-status).name}" if status < 0 else f" ended with status {status}"
        return " died"

    def _kill(self, rank: int) -> None:
        """Ends a process that does not answer: closed, its connections tell all others."""
        if rank in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pids[rank], signal.SIGKILL)

    def _tell(self, end: End) -> bool:
        """Says it to the other processes, and where this is the one to do so, to the user, unless that was done."""
        with self._lock:
            if self._over.is_set() or self.end:
                return False
            self.end = end
            self._send(end)
        told = end.rank == 0 and end.why.startswith(":")  # by rank 0 itself
        if self.rank in (int(end.rank == 0), end.rank) and not told:
            print(f"layersim: error: rank {end.rank}{end.why}", file=sys.stderr, flush=True)
        self._known.set()
        return True


def _who_started_this() -> int | None:
    """The process without which this one has nothing to do: rank 0's of DDP's launcher, or torchrun."""
    if (pid := int(os.environ.get(PARENT, os.getpid()))) != os.getpid():
        return pid
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def _die_with_parent(_: object) -> None:
    """In a loader's worker: ends it when its process ends, however that does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
