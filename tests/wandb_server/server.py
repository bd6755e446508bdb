"""The HTTP side of the stand-in, and the ways in which it can fail."""

import base64
import json
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import unquote, urlparse

from tests.wandb_server.operations import answer, name_of
from tests.wandb_server.store import Json, Store

KEY = "0123456789abcdef0123456789abcdef01234567"

Fault = Literal["errors", "hangs", "dies"]


class WandbServer:
    """Listens on a free port of loopback from `with` to the end of the block.

    Args:
        fault: how it fails: `errors` answers 500, `hangs` never answers, `dies` closes every connection unanswered.
        fault_when: whether the fault has begun, asked at each request; at once where None.
        read_only: runs and sweeps are refused, as in somebody else's project.
    """

    def __init__(
        self, *, fault: Fault | None = None, fault_when: Callable[[Store], bool] | None = None, read_only: bool = False
    ) -> None:
        self.store = Store()
        self.read_only = read_only
        self.failed = 0
        """How many requests met the fault."""
        self._fault = fault
        self._fault_when = fault_when
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """What a client needs to find this server and none of the user's own settings."""
        return {
            "WANDB_BASE_URL": self.address,
            "WANDB_API_KEY": KEY,
            "HOME": str(home),
            "NETRC": str(home / "netrc"),
            **{f"WANDB_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "CACHE", "DATA")},
        }

    def process_environment(self, home: Path) -> dict[str, str]:
        """The same for a process of its own."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        return clean | self.environment(home)

    def fails(self) -> Fault | None:
        """The fault that the request at hand meets."""
        with self._lock:
            if self._fault is None or (self._fault_when is not None and not self._fault_when(self.store)):
                return None
            self.failed += 1
        if self._fault == "hangs":
            self._closing.wait()
        return self._fault

    def take(self, method: str, path: str, key: str, body: bytes) -> tuple[int, Json]:
        """Takes in one request; gives status and reply."""
        with self._lock:
            first, *rest = unquote(urlparse(path).path).strip("/").split("/")
            if method == "PUT" and first == "storage":
                self.store.runs[rest[0]].uploads["/".join(rest[1:])] = body
                return 200, {}
            if method == "PUT" and first == "artifacts":
                self.store.artifact_files["/".join(rest)] = body
                return 200, {}
            if first == "sdk":  # the client's own measurements of itself
                return 200, {}
            if key != KEY:
                return 401, {"errors": [{"message": "user is not logged in"}]}
            if first == "graphql":
                return self._graphql(json.loads(body))
            if first == "files" and rest[-1] == "file_stream":
                self.store.runs[rest[2]].take_stream(json.loads(body))
                return 200, {"exitcode": None, "limits": {}}
            return 404, {"errors": [{"message": f"no such address: {path}"}]}

    def _graphql(self, request: Json) -> tuple[int, Json]:
        operation = name_of(request["query"])
        if self.read_only and operation.startswith("Upsert"):
            return 403, {"errors": [{"message": "permission denied", "path": [operation]}], "data": None}
        try:
            return 200, {"data": answer(self.store, operation, request.get("variables") or {}, self.address)}
        except KeyError as error:
            return 400, {"errors": [{"message": f"{operation}: {error} is not known"}]}


class _Http(ThreadingHTTPServer):
    owner: WandbServer
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients that have ended leave broken connections behind."""


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.owner.fails()
        if fault in ("hangs", "dies"):
            self.close_connection = True
            return
        status, reply = (500, {}) if fault else self.server.owner.take(self.command, self.path, self._key(), body)
        said = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_PUT = do_GET = do_POST

    def _key(self) -> str:
        """The password of basic authentication."""
        given = self.headers.get("Authorization", "").removeprefix("Basic ")
        return base64.b64decode(given).decode().partition(":")[2]

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test reads the store."""
