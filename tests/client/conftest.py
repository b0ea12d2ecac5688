"""A service that serves one job with one artifact over real HTTP, and fails as it is told."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from client import download, follow


class FaultyService:
    """What a test sets before it calls.

    `breaks`: after how many bytes each artifact request in turn is cut off, None for not at all; later ones are whole.
    `content`: what the artifact's requests get. `ranges`: whether Range is honoured.
    `answers`: what the GETs of a path get in turn, the last one for good: (status, body), or None to hang up.
    Afterwards `starts` holds the first byte that each artifact request asked for.
    """

    def __init__(self) -> None:
        self.content = bytes(range(256)) * 1200
        digest = hashlib.sha256(self.content).hexdigest()
        self.artifact = {"name": "gguf/model.gguf", "kind": "gguf", "bytes": len(self.content), "sha256": digest}
        self.breaks: list[int | None] = []
        self.ranges = True
        self.answers: dict[str, list[tuple[int, object] | None]] = {}
        self.starts: list[int] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"service": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: FaultyService

    def do_GET(self) -> None:
        answers = self.service.answers.get(self.path.partition("?")[0])
        if answers is None:
            self.send_artifact()
            return
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer is None:
            self.close_connection = True
        else:
            self.send(answer[0], json.dumps(answer[1]).encode())

    def send_artifact(self) -> None:
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.service.ranges else 0
        self.service.starts.append(start)
        cut = self.service.breaks.pop(0) if self.service.breaks else None
        self.send(206 if start else 200, self.service.content[start:], cut)
        self.close_connection = cut is not None

    def send(self, status: int, body: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no terminal is not to be taken for one, nor what is one for one that can do nothing."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyService]:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.0)
    service = FaultyService()
    yield service
    service.close()
