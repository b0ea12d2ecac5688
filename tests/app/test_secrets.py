"""Secrets through the API: written once, never shown, and encrypted with a key that can be changed."""

import json
import logging
from base64 import b64encode

import pytest
from pydantic import SecretStr, ValidationError
from sqlmodel import select

from app.db import read_session
from app.models import Secret
from app.secrets import service
from app.secrets.encryption import KEY_FILE, UnsafeKey, open_keys
from app.settings import Settings

TOKEN = "hf_thisIsTheTokenOfTheTest"
KEYS = [b64encode(bytes([number] * 32)).decode() for number in range(3)]


def put(client, name="hf", value=TOKEN):
    answer = client.put(f"/v1/secrets/{name}", json={"value": value})
    assert answer.status_code == 200, answer.text
    return answer.json()


def spec_of(upload, **fields):
    return {"base_model": "smollm2-135m-instruct", "dataset": {"file": upload()["id"]}} | fields


def stored(engine):
    with read_session(engine) as session:
        return session.exec(select(Secret)).all()


def test_a_secret_is_listed_by_name_and_never_shown(client, settings, engine, caplog):
    caplog.set_level(logging.DEBUG)
    first = put(client)
    assert first.keys() == {"name", "object", "created_at", "updated_at"}
    put(client, "other", "x")
    again = put(client, value=TOKEN + "2")
    assert (again["created_at"], again["updated_at"] > first["updated_at"]) == (first["created_at"], True)
    answer = client.get("/v1/secrets")
    assert [secret["name"] for secret in answer.json()["data"]] == ["hf", "other"]
    assert TOKEN not in answer.text
    with read_session(engine) as session:
        assert service.read(session, settings, "default", "hf") == TOKEN + "2"
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(stored(engine))
    assert not any(TOKEN.encode() in path.read_bytes() for path in settings.root.iterdir() if path.is_file())
    assert client.get("/v1/secrets/hf").status_code == 405


def test_a_deleted_secret_is_gone(client):
    put(client)
    assert client.delete("/v1/secrets/hf").json() == {"name": "hf", "object": "secret", "deleted": True}
    answer = client.delete("/v1/secrets/hf")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "secret_not_found")
    assert client.get("/v1/secrets").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"value": TOKEN + "\n"}, "value"),
        ({"value": " " + TOKEN}, "value"),
        ({"value": TOKEN + "\u00e9"}, "value"),
        ({"value": TOKEN * 200}, "value"),
        ({"value": ""}, "value"),
        ({"value": [TOKEN]}, "value"),
        ({"value": {TOKEN: TOKEN}}, "value"),
        ({"token": TOKEN}, "token"),
        (TOKEN, "body"),
        ([TOKEN], "body"),
    ],
)
def test_a_refused_value_is_not_echoed(client, body, param):
    answer = client.put("/v1/secrets/hf", json=body)
    assert answer.status_code == 422
    assert param in {detail["param"] for detail in answer.json()["error"]["details"]}
    assert TOKEN not in answer.text
    half = json.dumps({"value": TOKEN})[:-1]
    broken = client.put("/v1/secrets/hf", content=half, headers={"content-type": "application/json"})
    assert broken.status_code == 400
    assert TOKEN not in broken.text
    assert client.get("/v1/secrets").json()["data"] == []


@pytest.mark.parametrize("name", [".hidden", "a b", "a" * 65, "é", "a:b", "%20"])
def test_a_name_has_a_rule(client, name):
    assert client.put(f"/v1/secrets/{name}", json={"value": "x"}).status_code == 422


def test_a_job_names_a_secret_that_exists(client, upload, submit):
    error = client.post("/v1/jobs", json=spec_of(upload, hub_token="secret:hf")).json()["error"]
    assert [(detail["param"], detail["code"]) for detail in error["details"]] == [("hub_token", "secret_not_found")]
    assert "tunesmith secrets set hf" in error["message"]
    put(client)
    assert submit(hub_token="secret:hf")["spec"]["hub_token"] == "secret:hf"


@pytest.mark.parametrize("token", [TOKEN, f"Bearer {TOKEN}", f"secret:{TOKEN} ", [TOKEN], "secret:", f"secret:../{TOKEN}"])
def test_a_token_itself_is_neither_taken_nor_echoed(client, upload, settings, token):
    answer = client.post("/v1/jobs", json=spec_of(upload, hub_token=token))
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "hub_token")
    assert TOKEN not in answer.text
    assert "secret" in answer.text or isinstance(token, list)
    assert client.get("/v1/jobs").json()["data"] == []
    assert not any(TOKEN.encode() in path.read_bytes() for path in settings.root.iterdir() if path.is_file())


def test_the_key_file_is_its_owners_alone(client, settings):
    path = settings.root / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_keys(settings).decrypt(open_keys(settings).encrypt(b"x")) == b"x"
    path.chmod(0o640)
    with pytest.raises(UnsafeKey, match="chmod 600"):
        open_keys(settings)
    path.chmod(0o600)
    path.write_text("not a key")
    with pytest.raises(UnsafeKey) as refusal:
        open_keys(settings)
    assert "not a key" not in str(refusal.value)


def with_keys(settings, *keys):
    settings.secret_key = SecretStr(",".join(keys))
    return settings


def test_a_new_key_takes_over_what_the_old_one_encrypted(client, engine, settings, caplog):
    with_keys(settings, KEYS[0])
    put(client)
    put(client, "other", "x")
    before = stored(engine)[0].encrypted
    service.renew(engine, with_keys(settings, KEYS[1], KEYS[0]))
    assert stored(engine)[0].encrypted != before
    with read_session(engine) as session:
        assert service.read(session, with_keys(settings, KEYS[1]), "default", "hf") == TOKEN
        assert service.read(session, with_keys(settings, KEYS[2]), "default", "hf") is None
    service.renew(engine, settings)
    assert "'hf'" in caplog.text
    assert TOKEN not in caplog.text


def test_a_secret_without_its_key_is_none(client, upload, settings):
    with_keys(settings, KEYS[0])
    put(client)
    with_keys(settings, KEYS[1])
    error = client.post("/v1/jobs", json=spec_of(upload, hub_token="secret:hf")).json()["error"]
    assert error["code"] == "secret_not_found"
    put(client)
    assert client.post("/v1/jobs", json=spec_of(upload, hub_token="secret:hf")).status_code == 201


@pytest.mark.parametrize("keys", ["short", KEYS[0] + ",", f"{KEYS[0]},{KEYS[1][:-4]}"])
def test_a_key_of_another_shape_is_refused_unseen(environment, monkeypatch, keys):
    monkeypatch.setenv("TUNESMITH_SECRET_KEY", keys)
    with pytest.raises(ValidationError) as refusal:
        Settings()
    assert "openssl rand -base64 32" in str(refusal.value)
    assert keys not in str(refusal.value)
