import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine
from starlette.testclient import TestClient

from app.db import make_engine
from app.main import attach, create_app
from app.migration import migrate
from app.settings import Settings

# As for stages: torch is imported after this, and its threads would otherwise spin beside the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# What the tests talk to is on this machine, and no proxy leads there.
for name in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ.pop(name, None)
    os.environ.pop(name.upper(), None)

# The same examples each time, so that a change is judged by what it changes. `--hypothesis-profile default` looks for new ones.
# None fails for being slow: a machine may be busy.
hypothesis.settings.register_profile(
    "same examples", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("same examples")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data and caches of the test's own, no hub, and nobody who listens on the broker's socket.

    The service's reaper makes no round unless a test asks for some: it would come at another moment on each machine.
    """
    monkeypatch.setenv("TUNESMITH_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("TUNESMITH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TUNESMITH_REAPER_SECONDS", "3600")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copied by each test, which is faster than to migrate anew."""
    path = tmp_path_factory.mktemp("template") / "tunesmith.db"
    engine = make_engine(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    return path


@pytest.fixture
def settings(environment: None, migrated_database: Path) -> Settings:
    settings = Settings()
    settings.root.mkdir()
    shutil.copy(migrated_database, settings.root)
    return settings


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = make_engine(settings.database)
    yield engine
    engine.dispose()


@cache
def shared_service() -> FastAPI:
    """Made once, because FastAPI prepares each route on its first request, which costs more than most tests."""
    return create_app(Settings())


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """A client of a running service, under a loopback name as the guard wants it."""
    service = shared_service()
    attach(service, settings)
    with TestClient(service, base_url="http://127.0.0.1:8000") as client:
        yield client
