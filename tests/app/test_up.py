"""The whole service as one process tree."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from held_port import held_port

from app.settings import Settings

ROWS = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n' * 3


def wait_until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return value


def list_processes(root: Path) -> dict[int, str]:
    """Whatever runs with this data folder in its environment or its arguments."""
    found = {}
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.environ().get("TUNESMITH_DATA_DIR", "")]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(root) in word for word in words):
            found[process.pid] = " ".join(words)
    return found


class Up:
    def __init__(self, root: Path, port: int):
        self.root = root
        self.console = root.parent / "console.txt"
        with self.console.open("w") as console:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.up", "--port", str(port), "--data-dir", str(root)], stdout=console, stderr=console
            )

    @property
    def url(self) -> str:
        return wait_until(lambda: re.search(r"listening on (\S+)", self.console.read_text()))[1]

    def call(self, path: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        request = urllib.request.Request(self.url + path, data, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as answer:
            return answer.code, json.load(answer)

    def is_ready(self) -> bool:
        return self.call("/readyz")[0] == 200

    def has_device(self) -> bool:
        return any(worker["device"] for worker in self.call("/v1/workers")[1]["data"])

    def find(self, words: str) -> int | None:
        return next((pid for pid, command in list_processes(self.root).items() if words in command), None)

    def upload(self) -> str:
        body = (
            b'--cut\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
            b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + ROWS + b"\r\n--cut--\r\n"
        )
        status, file = self.call("/v1/files", body, {"content-type": "multipart/form-data; boundary=cut"})
        assert status in (200, 201), file
        return file["id"]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with held_port() as port:
        service = Up(tmp_path / "data", port)
        yield service
        service.process.terminate()
        service.process.wait(120)
        for pid in list_processes(service.root):
            os.kill(pid, signal.SIGKILL)


def test_it_serves_watches_its_parts_and_leaves_nothing_behind(up: Up) -> None:
    wait_until(up.is_ready)
    file_id = up.upload()
    wait_until(lambda: up.call(f"/v1/files/{file_id}")[1]["status"] == "processed")
    assert up.call(f"/v1/files/{file_id}/report")[1]["rows"] == 3

    second = subprocess.run(
        [sys.executable, "-m", "app.up", "--port", "0", "--data-dir", str(up.root)], capture_output=True, text=True, timeout=120
    )
    assert second.returncode == 1
    assert f"already runs on {up.root}, as process {up.process.pid}" in second.stderr

    cpu_worker = up.find("--queues cpu")
    broker = up.find("valkey-server")
    assert cpu_worker and broker
    os.kill(cpu_worker, signal.SIGKILL)
    os.kill(broker, signal.SIGKILL)
    wait_until(lambda: up.find("--queues cpu") not in (None, cpu_worker) and up.find("valkey-server") not in (None, broker))
    assert "cpu worker was killed by SIGKILL" in up.console.read_text()
    file_id = up.upload()
    wait_until(lambda: up.call(f"/v1/files/{file_id}")[1]["status"] == "processed")

    wait_until(up.has_device, 600)  # the process that looks for it is the worker's, and goes by itself
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(120) == 0
    assert list_processes(up.root) == {}


def test_its_parts_end_when_it_is_killed(up: Up) -> None:
    wait_until(up.is_ready)
    up.process.kill()
    wait_until(lambda: list_processes(up.root) == {}, 600)  # the look for a device, too, which imports torch


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = subprocess.run(
            [sys.executable, "-m", "app.up", "--port", port, "--data-dir", str(tmp_path / "data")],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr and "--port" in refused.stderr


def test_an_api_that_cannot_start_says_why(tmp_path: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "app.up", "--port", "0", "--data-dir", str(tmp_path / "data"), "--host", "0.0.0.0"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "TUNESMITH_BOOTSTRAP_KEY" in refused.stderr
    assert list_processes(tmp_path / "data") == {}


def test_a_long_data_path_gets_a_short_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(data_dir=tmp_path / ("long" * 30))
    assert len(os.fsencode(settings.broker_socket)) <= 100
    assert settings.broker_socket != Settings(data_dir=tmp_path / ("long" * 31)).broker_socket
    assert Settings(data_dir=Path("/d")).broker_socket == Path("/d/run/broker.sock")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 30)))
    assert len(os.fsencode(settings.broker_socket)) <= 100
