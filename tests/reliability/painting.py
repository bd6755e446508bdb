"""One process of Vega's for all forked commands: it takes half a second to start, as long as most of them take."""

import contextlib
import json
import os
import socket
import socketserver
import subprocess
import sys
from functools import cache
from threading import Thread
from types import SimpleNamespace

import vl_convert

ADDRESS = f"\0layersim-painting-{os.getpid()}"
"""Of a socket, which has no file."""


class Turn(socketserver.StreamRequestHandler):
    """Draws for one command, as a process of its own would."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the command was killed
            for line in self.rfile:
                try:
                    call, options = json.loads(line)
                    made, kind = getattr(vl_convert, call)(**options), b"made"
                except Exception as error:
                    made, kind = str(error), b"error"
                made = made.encode() if isinstance(made, str) else made
                self.wfile.write(b"%s %d\n" % (kind, len(made)) + made)


def start() -> None:
    """Starts it; it ends with this process and all that are forked from it."""
    begun = [sys.executable, __file__, ADDRESS[1:]]
    process = subprocess.Popen(begun, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()


@cache
def painter(owner: int) -> SimpleNamespace:
    """What draws for a process, in place of `layersim.report.drawing.painter._painter`."""
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(ADDRESS)
        return SimpleNamespace(stdin=one.makefile("wb"), stdout=one.makefile("rb"), wait=lambda: None)


if __name__ == "__main__":
    with socketserver.ThreadingUnixStreamServer(f"\0{sys.argv[1]}", Turn) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        print(flush=True)
        sys.stdin.read()
        os._exit(0)
