from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from app.db import make_engine, migrate
from app.main import create_app
from app.settings import Settings


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data and caches of the test's own, no hub, and nobody who listens on the broker's socket."""
    for name, value in {
        "TUNESMITH_DATA_DIR": str(tmp_path / "data"),
        "TUNESMITH_CACHE_DIR": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def settings(environment: None) -> Settings:
    return Settings()


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = make_engine(settings.database)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """A client of a running service, under a loopback name as the guard wants it."""
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8000") as client:
        yield client
