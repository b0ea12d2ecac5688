"""Links that open one artifact without a key, for a while."""

from base64 import b64encode
from datetime import timedelta

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from app.artifacts import links
from app.keys.keyring import Keyring
from app.main import create_app
from app.models import now

BOOTSTRAP = "tsk_of_the_first_administrator"
NAME = "gguf/model q8.gguf"
CONTENT = b"GGUF" + bytes(range(256))


@pytest.fixture
def artifact(client, submit, make_artifact, engine):
    """The address of an artifact of a server with keys; the client sends none unless told."""
    job_id = submit()["id"]
    make_artifact(job_id, NAME, CONTENT)
    make_artifact(job_id, "gguf/other.gguf", b"other")
    client.app.state.keyring = Keyring(engine, SecretStr(BOOTSTRAP))
    return f"/v1/jobs/{job_id}/artifacts/{NAME}"


@pytest.fixture
def make_link(client, artifact):
    def make_link(**wanted):
        answer = client.post(f"{artifact}/link", json=wanted or None, headers={"authorization": f"Bearer {BOOTSTRAP}"})
        assert answer.status_code == 201, answer.text
        return answer.json()

    return make_link


def test_a_link_opens_its_artifact_without_a_key(client, settings, make_link):
    settings.public_url = "https://tune.example/"
    link = make_link(expires_in_seconds=60)
    assert link["url"].startswith("https://tune.example/v1/links/") and link["url"].endswith("/gguf/model%20q8.gguf")
    path = link["url"].removeprefix("https://tune.example")
    assert client.get(path).content == CONTENT
    part = client.get(path, headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, CONTENT[4:8])
    assert client.head(path).headers["content-length"] == str(len(CONTENT))
    assert client.delete(path).status_code == 405


def test_a_link_opens_nothing_else(client, make_link, artifact):
    path = make_link()["url"].removeprefix("http://127.0.0.1:8000")
    token, job_id, name = path.removeprefix("/v1/links/").split("/", 2)
    expires, signature = token.split(".")
    assert client.get(artifact).status_code == 401
    for changed in (
        f"{token}/{job_id}/gguf/other.gguf",
        f"{token}/job_1/{name}",
        f"{int(expires) + 1}.{signature}/{job_id}/{name}",
        f"{expires}.{'A' * 43}/{job_id}/{name}",
        f"{expires}./{job_id}/{name}",
        f"x/{job_id}/{name}",
        f"{expires}.{signature}%0A/{job_id}/{name}",
    ):
        assert client.get(f"/v1/links/{changed}").status_code == 403, changed


def test_a_link_ends(client, make_link, monkeypatch):
    path = make_link(expires_in_seconds=3600)["url"].removeprefix("http://127.0.0.1:8000")
    assert client.get(path).status_code == 200
    monkeypatch.setattr(links, "now", lambda: now() + timedelta(seconds=3601))
    answer = client.get(path)
    assert (answer.status_code, "over" in answer.json()["error"]["message"]) == (403, True)


def test_a_new_secret_key_ends_links_once_the_old_one_is_gone(client, settings, make_link):
    old, new = (b64encode(bytes([number] * 32)).decode() for number in (1, 2))
    settings.secret_key = SecretStr(old)
    path = make_link()["url"].removeprefix("http://127.0.0.1:8000")
    settings.secret_key = SecretStr(f"{new},{old}")
    assert client.get(path).status_code == 200
    settings.secret_key = SecretStr(new)
    assert client.get(path).status_code == 403


def test_a_link_is_made_only_for_what_is_there_and_not_for_long(client, artifact):
    headers = {"authorization": f"Bearer {BOOTSTRAP}"}
    assert client.post(f"{artifact}x/link", headers=headers).json()["error"]["code"] == "artifact_not_found"
    refused = client.post(f"{artifact}/link", json={"expires_in_seconds": 7 * 86400 + 1}, headers=headers)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "expires_in_seconds")


def test_other_origins_may_call_only_where_they_are_named(settings):
    settings.bootstrap_key, page = SecretStr(BOOTSTRAP), "https://app.example"
    asks = {"origin": page, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    for origins, allowed in (((), None), ((page,), page), (("https://other.example",), None)):
        settings.cors_origins = origins
        with TestClient(create_app(settings), base_url="https://tune.example") as client:
            asked = client.options("/v1/jobs", headers=asks)
            assert (asked.headers.get("access-control-allow-origin"), asked.status_code == 200) == (
                allowed,
                allowed is not None,
            )
            refused = client.get("/v1/jobs", headers={"origin": page})
            assert (refused.status_code, refused.headers.get("access-control-allow-origin")) == (401, allowed)
