import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import Engine
from supervising import Halts, StartWorker, Supervised

from app.broker import Broker
from app.reaper import Reaper
from app.settings import Settings

LEASE_SECONDS = 600
"""Outlasts every test, on any machine: a test that wants leases to be over says so (`Supervised.expire_leases`)."""


@pytest.fixture
def supervised(
    engine: Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_broker: None
) -> Supervised:
    scripts = tmp_path / "models"
    scripts.mkdir()
    settings.models_dir = scripts
    settings.lease_seconds = LEASE_SECONDS
    monkeypatch.setattr("worker.runner.TICK_SECONDS", 0.25)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent / "scripted"), str(Path.cwd())]))
    monkeypatch.setenv("TUNESMITH_MODELS_DIR", str(scripts))
    monkeypatch.setenv("TUNESMITH_LEASE_SECONDS", str(LEASE_SECONDS))
    return Supervised(engine, settings, scripts)


@pytest.fixture
def halts(supervised: Supervised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Halts:
    """Real stages, which stop themselves at the moment that the test names."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent / "halting"), str(Path.cwd())]))
    monkeypatch.setenv("HALTS_AT", str(tmp_path / "halts_at"))
    return Halts(tmp_path / "halts_at")


@pytest.fixture
def no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings leave for a transport inside this process."""
    monkeypatch.setenv("TUNESMITH_BROKER_URL", "memory://")


@pytest.fixture
def broker(settings: Settings, monkeypatch: pytest.MonkeyPatch, supervised: Supervised) -> Iterator[redis.Redis]:
    """The embedded broker. Pytest's long paths also try the short path that stands in for them."""
    monkeypatch.delenv("TUNESMITH_BROKER_URL")
    server = Broker(settings.broker_socket, settings.root / "broker", settings.root / "broker.log")
    server.start()
    yield redis.Redis(unix_socket_path=str(settings.broker_socket))
    server.stop()


@pytest.fixture
def start_worker(broker: redis.Redis, tmp_path: Path) -> Iterator[StartWorker]:
    started = []

    def start(queues: str) -> subprocess.Popen:
        with (tmp_path / f"worker-{len(started)}.log").open("w") as log:
            process = subprocess.Popen([sys.executable, "-m", "worker.main", "--queues", queues], stdout=log, stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def reaper(supervised: Supervised) -> Iterator[Reaper]:
    supervised.settings.reaper_seconds = 0.3
    reaper = Reaper(supervised.engine, supervised.settings)
    reaper.start()
    yield reaper
    reaper.stop()
