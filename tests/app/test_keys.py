"""API keys: made once, kept as hashes, refused when they are revoked, expired or lack a scope."""

import logging
import subprocess
import sys
from datetime import timedelta

import pytest
from pydantic import SecretStr
from sqlmodel import select

from app.db import read_session, write_session
from app.keys import repository
from app.keys.keyring import Keyring
from app.keys.service import hash_key
from app.main import has_key
from app.models import ApiKey, now

BOOTSTRAP = "tsk_of_the_first_administrator"


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def keyed(client, engine):
    """The client of a server with a bootstrap key, which it sends unless told otherwise."""
    client.app.state.keyring = Keyring(engine, SecretStr(BOOTSTRAP))
    client.headers.update(bearer(BOOTSTRAP))
    return client


@pytest.fixture
def make_key(keyed):
    def make_key(**wanted):
        answer = keyed.post("/v1/keys", json=wanted)
        assert answer.status_code == 201, answer.text
        return answer.json()

    return make_key


def test_a_key_is_shown_once_and_stored_as_its_hash(keyed, make_key, engine, caplog):
    caplog.set_level(logging.DEBUG)
    made = make_key(name="ci")
    key = made.pop("key")
    assert key.startswith("tsk_") and len(key) > 45 and made["hint"] == key[-4:]
    assert (made["scopes"], made["tenant"], made["expires_at"]) == (["read", "write"], "default", None)
    assert keyed.get("/v1/keys").json()["data"] == [made]
    with read_session(engine) as session:
        row = session.exec(select(ApiKey)).one()
    assert row.sha256 == hash_key(key)
    assert key not in repr(row.model_dump()) and key not in caplog.text


@pytest.mark.parametrize(
    ("scopes", "reads", "writes", "administers"),
    [(["read"], 200, 403, 403), (["write"], 403, 422, 403), (["admin"], 403, 403, 200), (["read", "write"], 200, 422, 403)],
)
def test_a_key_allows_what_its_scopes_say(keyed, make_key, scopes, reads, writes, administers):
    headers = bearer(make_key(scopes=scopes)["key"])
    assert keyed.get("/v1/jobs", headers=headers).status_code == reads
    assert keyed.post("/v1/jobs", json={}, headers=headers).status_code == writes
    assert keyed.get("/v1/keys", headers=headers).status_code == administers


def test_a_revoked_key_is_refused_at_once(keyed, make_key):
    made = make_key()
    assert keyed.get("/v1/jobs", headers=bearer(made["key"])).status_code == 200
    assert keyed.delete(f"/v1/keys/{made['id']}").json() == {"id": made["id"], "object": "api_key", "deleted": True}
    answer = keyed.get("/v1/jobs", headers=bearer(made["key"]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert keyed.get("/v1/keys").json()["data"] == []
    assert keyed.delete(f"/v1/keys/{made['id']}").json()["error"]["code"] == "key_not_found"


def test_a_key_that_is_revoked_while_keys_are_read_is_refused_at_once(keyed, make_key, monkeypatch):
    """What was read before the change does not count as fresh after it."""
    made = make_key()
    list_all = repository.list_all

    def list_and_revoke(session, tenant):
        keys = list(list_all(session, tenant))
        if tenant is None:
            monkeypatch.setattr(repository, "list_all", list_all)
            assert keyed.delete(f"/v1/keys/{made['id']}").status_code == 200
        return keys

    monkeypatch.setattr(repository, "list_all", list_and_revoke)
    keyed.app.state.keyring.refresh()
    assert keyed.get("/v1/jobs", headers=bearer(made["key"])).status_code == 401


def test_an_expired_key_is_refused(keyed, make_key, engine):
    made = make_key(expires_in_seconds=3600)
    assert keyed.get("/v1/jobs", headers=bearer(made["key"])).status_code == 200
    with write_session(engine) as session:
        session.get_one(ApiKey, made["id"]).expires_at = now() - timedelta(seconds=1)
    keyed.app.state.keyring.refresh()
    assert keyed.get("/v1/jobs", headers=bearer(made["key"])).status_code == 401


def test_an_administrator_of_a_tenant_stays_in_it_and_the_operator_does_not(keyed, make_key):
    operators = make_key(tenant="default")
    theirs = make_key(tenant="acme", scopes=["read", "admin"])
    headers = bearer(theirs["key"])
    assert keyed.post("/v1/keys", json={"tenant": "other"}, headers=headers).json()["error"]["param"] == "tenant"
    mine = keyed.post("/v1/keys", json={}, headers=headers).json()
    assert mine["tenant"] == "acme"
    assert [key["id"] for key in keyed.get("/v1/keys", headers=headers).json()["data"]] == [mine["id"], theirs["id"]]
    assert len(keyed.get("/v1/keys").json()["data"]) == 3
    assert keyed.delete(f"/v1/keys/{operators['id']}", headers=headers).status_code == 404
    assert keyed.delete(f"/v1/keys/{mine['id']}").status_code == 200


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes[0]"),
        ({"tenant": "A b"}, "tenant"),
        ({"tenant": ""}, "tenant"),
        ({"name": "x" * 101}, "name"),
        ({"expires_in_seconds": 0}, "expires_in_seconds"),
        ({"expires_in_seconds": 10**12}, "expires_in_seconds"),
        ({"key": "tsk_mine"}, "key"),
    ],
)
def test_a_key_that_cannot_be_is_refused(keyed, wanted, param):
    answer = keyed.post("/v1/keys", json=wanted)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


def test_the_use_of_a_key_is_noted_about_once_an_hour(keyed, make_key, engine):
    made = make_key()

    def noted():
        with read_session(engine) as session:
            return session.get_one(ApiKey, made["id"]).last_used_at

    assert noted() is None
    keyed.get("/v1/jobs", headers=bearer(made["key"]))
    first = noted()
    assert now() - first < timedelta(minutes=1)
    keyed.app.state.keyring.refresh()
    keyed.get("/v1/jobs", headers=bearer(made["key"]))
    assert noted() == first
    with write_session(engine) as session:
        session.get_one(ApiKey, made["id"]).last_used_at = now() - timedelta(hours=2)
    keyed.app.state.keyring.refresh()
    keyed.get("/v1/jobs", headers=bearer(made["key"]))
    assert noted() > first


def test_a_server_without_keys_makes_none_for_whoever_asks(client):
    assert client.get("/v1/keys").json()["data"] == []
    answer = client.post("/v1/keys", json={})
    assert (answer.status_code, "tunesmith keys create --local" in answer.json()["error"]["message"]) == (403, True)


def create_locally(*arguments):
    command = [sys.executable, "-m", "client.cli", "keys", "create", "--local", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_first_key_is_made_on_the_host_and_closes_a_running_server_for_good(client, settings):
    assert not has_key(settings)
    assert client.get("/v1/jobs").status_code == 200
    done = create_locally("--name", "first")
    key = done.stdout.strip()
    assert key.startswith("tsk_"), done.stderr
    client.app.state.keyring.refresh()
    assert client.get("/v1/jobs").status_code == 401
    assert has_key(settings)
    made = client.get("/v1/keys", headers=bearer(key)).json()["data"][0]
    assert (made["name"], made["scopes"]) == ("first", ["admin", "read", "write"])
    assert client.delete(f"/v1/keys/{made['id']}", headers=bearer(key)).status_code == 200
    assert client.get("/v1/jobs").status_code == 401
    assert client.get("/healthz").status_code == 200
    refused = create_locally("--scope", "root")
    assert (refused.returncode, "scopes[0]" in refused.stderr) == (1, True)
