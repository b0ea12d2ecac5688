from types import SimpleNamespace

import pytest
from hub_server import HubServer


@pytest.fixture
def hub(monkeypatch):
    """A hub where `me` may write, and a client in this process that points there and waits for nothing."""
    with HubServer() as server:
        server.enrol("hf_writer", name="me", role="write")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        server.pauses = []
        clock = SimpleNamespace(sleep=server.pauses.append)
        monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
        monkeypatch.setattr("worker.publishing.failures.time", clock)
        yield server
