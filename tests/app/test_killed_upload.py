"""An API that is killed in the middle of an upload: nothing of it is visible, and it can be sent again."""

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from app.db import make_engine
from app.settings import Settings
from app.storage import Storage
from app.sweep import SAFE_AGE_SECONDS, sweep

ROWS = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n' * 40_000
HEAD = b'--cut\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
HEAD += b'--cut\r\ncontent-disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'
BODY = HEAD + ROWS + b"\r\n--cut--\r\n"
TYPE = "multipart/form-data; boundary=cut"


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start_api(settings: Settings, port: int, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen]]:
    started = []

    def start() -> subprocess.Popen:
        with (tmp_path / "api.log").open("a") as log:
            command = [sys.executable, "-m", "app.main", "--port", str(port)]
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        while True:
            assert started[-1].poll() is None, (tmp_path / "api.log").read_text()
            try:
                httpx2.get(f"http://127.0.0.1:{port}/healthz")
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


def test_an_upload_that_its_server_did_not_survive(settings: Settings, port: int, start_api: Callable) -> None:
    url, storage = f"http://127.0.0.1:{port}", Storage(settings.root)
    api = start_api()
    with send_half(port):
        while not any(path.stat().st_size > 2**20 for path in storage.uploads()):
            time.sleep(0.01)
        assert httpx2.get(f"{url}/v1/files").json()["data"] == []
        api.kill()
        api.wait()
    (left,) = storage.uploads()
    assert 0 < left.stat().st_size < len(ROWS)

    start_api()
    assert httpx2.get(f"{url}/v1/files").json()["data"] == []
    assert not list(settings.root.glob("blobs/*/*"))
    file = httpx2.post(f"{url}/v1/files", content=BODY, headers={"content-type": TYPE}).raise_for_status().json()
    content = httpx2.get(f"{url}/v1/files/{file['id']}/content").content
    assert (file["bytes"], hashlib.sha256(content).digest()) == (len(ROWS), hashlib.sha256(ROWS).digest())

    past = time.time() - SAFE_AGE_SECONDS - 1
    os.utime(left, (past, past))
    engine = make_engine(settings.database)
    sweep(engine, storage)
    engine.dispose()
    assert not left.exists()
