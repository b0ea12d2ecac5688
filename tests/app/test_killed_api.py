"""An API that is killed: in the middle of an upload, and between the commit of what it made and the answer."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx2
import pytest
from held_port import held_port

from app.db import make_engine
from app.settings import Settings
from app.storage import Storage
from app.sweep import SAFE_AGE_SECONDS, sweep

ROWS = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n' * 40_000
HEAD = b'--cut\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
HEAD += b'--cut\r\ncontent-disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'
BODY = HEAD + ROWS + b"\r\n--cut--\r\n"
TYPE = "multipart/form-data; boundary=cut"
MORTAL = """
import os, signal
from sqlalchemy import event
from sqlalchemy.orm import Session
from app import main
from app.models import IdempotentRequest

@event.listens_for(Session, "after_flush")
def look(session, _):
    session.info["dies"] = session.info.get("dies") or any(isinstance(row, IdempotentRequest) for row in session.new)

@event.listens_for(Session, "after_commit")
def die(session):
    if session.info.get("dies"):
        os.kill(os.getpid(), signal.SIGKILL)

main.main()
"""


@pytest.fixture
def port() -> Iterator[int]:
    with held_port() as port:
        yield port


@pytest.fixture
def http(port: int) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
        yield http


@pytest.fixture
def start_api(
    settings: Settings, port: int, http: httpx2.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., subprocess.Popen]]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    started = []

    def start(how: Sequence[str] = ("-m", "app.main")) -> subprocess.Popen:
        with (tmp_path / "api.log").open("a") as log:
            command = [sys.executable, *how, "--port", str(port)]
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        while True:
            assert started[-1].poll() is None, (tmp_path / "api.log").read_text()
            try:
                http.get("/healthz")
                return started[-1]
            except httpx2.TransportError:
                time.sleep(0.05)

    yield start
    for process in started:
        process.kill()
        process.wait()


def send_half(port: int) -> socket.socket:
    """The first part of an upload, on a connection that stays open."""
    connection = socket.create_connection(("127.0.0.1", port))
    request = (
        f"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: {TYPE}\r\ncontent-length: {len(BODY)}\r\n\r\n"
    )
    connection.sendall(request.encode() + BODY[: len(BODY) // 2])
    return connection


def test_an_upload_that_its_server_did_not_survive(
    settings: Settings, port: int, http: httpx2.Client, start_api: Callable
) -> None:
    storage = Storage(settings.root)
    api = start_api()
    with send_half(port):
        while not any(path.stat().st_size > 2**20 for path in storage.uploads()):
            time.sleep(0.01)
        assert http.get("/v1/files").json()["data"] == []
        api.kill()
        api.wait()
    (left,) = storage.uploads()
    assert 0 < left.stat().st_size < len(ROWS)

    start_api()
    assert http.get("/v1/files").json()["data"] == []
    assert not list(settings.root.glob("blobs/*/*"))
    file = http.post("/v1/files", content=BODY, headers={"content-type": TYPE}).raise_for_status().json()
    content = http.get(f"/v1/files/{file['id']}/content").content
    assert (file["bytes"], hashlib.sha256(content).digest()) == (len(ROWS), hashlib.sha256(ROWS).digest())

    past = time.time() - SAFE_AGE_SECONDS - 1
    os.utime(left, (past, past))
    engine = make_engine(settings.database)
    sweep(engine, storage)
    engine.dispose()
    assert not left.exists()


def test_what_a_killed_server_had_made_is_answered_by_the_next(http: httpx2.Client, start_api: Callable) -> None:
    """It dies, by a real SIGKILL, after the commit and before the answer; the client sends the same again."""
    upload = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", ROWS[:93])}}
    spec = {"base_model": "smollm2-135m-instruct", "dataset": {"hub": {"repo": "a/b"}}}
    for path, request in (("files", upload), ("jobs", {"json": spec})):
        mortal = start_api(["-c", MORTAL])
        with pytest.raises(httpx2.TransportError):
            http.post(f"/v1/{path}", **request, headers={"idempotency-key": path})
        assert mortal.wait(120) == -signal.SIGKILL
    start_api()
    for path, request in (("files", upload), ("jobs", {"json": spec})):
        [made] = http.get(f"/v1/{path}").json()["data"]
        for _ in range(2):
            answer = http.post(f"/v1/{path}", **request, headers={"idempotency-key": path}).raise_for_status()
            assert answer.json()["id"] == made["id"]
        assert len(http.get(f"/v1/{path}").json()["data"]) == 1
        assert http.post(f"/v1/{path}", **request).raise_for_status().json()["id"] != made["id"]
