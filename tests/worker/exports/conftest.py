from pathlib import Path

import pytest

from app.jobs.spec import BUILT_IN_MODEL
from worker.data import base_models


@pytest.fixture(scope="session")
def built_in(tmp_path_factory) -> Path:
    place = {"cache_dir": tmp_path_factory.mktemp("cache"), "models_dir": None}
    return base_models.fetch(BUILT_IN_MODEL, None, **place, report=lambda *_, **__: None).path
