"""The process in which Vega runs.

It is a JavaScript engine, whose threads do not survive a fork: a process that was forked from one that had drawn
(`ddp_notebook`, a loader's worker) would wait for them for ever. So it has a process of its own, which starts in a
moment, draws one picture after the other, and ends when the one that it draws for does.
"""

import atexit
import errno
import json
import os
import subprocess
import sys
from functools import cache
from threading import Lock
from typing import Any

_PROGRAM = """
import json, os, sys
import vl_convert
for line in sys.stdin.buffer:
    try:
        call, options = json.loads(line)
        made, kind = getattr(vl_convert, call)(**options), b"made"
    except Exception as error:
        made, kind = str(error), b"error"
    made = made.encode() if isinstance(made, str) else made
    try:
        sys.stdout.buffer.write(b"%s %d\\n" % (kind, len(made)) + made)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os._exit(0)
"""


_turns: dict[int, Lock] = {}
"""For the threads of each process, by its id: one that is forked has a painter of its own."""


def vega(call: str, **options: Any) -> bytes:
    """What a function of vl_convert makes, such as `vegalite_to_png` of a specification; text as UTF-8.

    Raises:
        RuntimeError: Vega refuses the specification.
        ChildProcessError: its process has ended; the next call starts another.
    """
    with _turns.setdefault(os.getpid(), Lock()):
        painter = _painter(os.getpid())
        assert painter.stdin is not None
        assert painter.stdout is not None
        try:
            painter.stdin.write(json.dumps([call, options], allow_nan=False).encode() + b"\n")
            painter.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last tells why
        kind, _, length = painter.stdout.readline().partition(b" ")
        made = painter.stdout.read(int(length or 0))
        if not kind:
            _painter.cache_clear()
            why = f"Vega's process has ended with status {painter.wait()}"  # memory was short, or somebody ended it
            raise ChildProcessError(errno.EIO, why, "a picture")
        if kind != b"made":
            raise RuntimeError(f"Vega did not draw the picture: {' '.join(made.decode().splitlines()[:2])}")
        return made


@cache
def _painter(owner: int) -> subprocess.Popen[bytes]:
    """The process that draws for this one; Ctrl-C is not for it, and it ends, without a word, when its input
    does, or where nobody is left to read what it made."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    painter = subprocess.Popen([sys.executable, "-c", _PROGRAM], **pipes, start_new_session=True)
    atexit.register(painter.communicate)
    return painter
