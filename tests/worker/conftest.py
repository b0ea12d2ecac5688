from pathlib import Path

import pytest
from sqlalchemy import Engine
from supervising import Supervised

from app.settings import Settings


@pytest.fixture
def supervised(
    engine: Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_broker: None
) -> Supervised:
    scripts = tmp_path / "models"
    scripts.mkdir()
    settings.models_dir = scripts
    settings.lease_seconds = 2
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "scripted"))
    monkeypatch.setenv("TUNESMITH_MODELS_DIR", str(scripts))
    monkeypatch.setenv("TUNESMITH_LEASE_SECONDS", "2")
    return Supervised(engine, settings, scripts)


@pytest.fixture
def no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings leave for a transport inside this process."""
    monkeypatch.setenv("TUNESMITH_BROKER_URL", "memory://")
