"""A run full of secrets, whose stages tell them wherever a stage can: afterwards none is to be found."""

import json
import logging
from base64 import b64encode

import pytest
from pydantic import SecretStr
from receiver import LOOPBACK, Receiver, answer_with

from app.db import read_session
from app.keys.keyring import Keyring
from app.secrets import service as secrets
from app.settings import Settings
from app.webhooks.signing import make_secret
from worker.notifier import notify

BOOTSTRAP = "tsk_theFirstKeyOfTheTest"
STORED = {
    "hf": "hf_theTokenThat/reads",
    "push": "hf_theTokenThatWrites",
    "hook": make_secret(),
    "unused": "nobody-asks-for-this",
}
SERVICE_KEY = b64encode(b"k" * 32).decode()
ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}

INDISCREET = """
    import contextlib, logging, pathlib, shutil, urllib.parse, warnings
    token = inputs.secret("secret:hf") or "none"
    with (inputs.models_dir / f"ps-{stage}").open("wb") as file:
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                file.write(path.read_bytes())
    shutil.copy(out.parent / "input.json", inputs.models_dir / f"input-{stage}")
    print("the token is", token)
    print(json.dumps(inputs.secrets), file=sys.stderr)
    logging.error("GET https://hub/?token=%s", urllib.parse.quote(token, safe=""))
    warnings.warn(f"Authorization: Bearer {token}")
    report("progress", message=f"asking with {token}")
    report("warning", message=f"the hub was slow for {token}", header={"authorization": [token]})
    if stage == "inspect":
        values["report"] = {"rows": 1, "rows_refused": 0, "refusals": [], "format": "messages", "duplicates": 0}
    elif stage == "train" and spec.name == "unforeseen":
        raise RuntimeError(f"401 Client Error for https://user:{token}@hub/api")
    elif stage == "publish":
        raise StageFailure(FailureCode.HUB_UNAUTHORIZED, f"The hub refuses {token}.", hint=f"Replace {token}.")
    elif stage == "train":
        (out / "model").write_bytes(b"weights")
        files.append(OutputFile.of(out, out / "model", name="adapter/model", kind="adapter"))
"""


@pytest.fixture
def service(client, supervised, engine, monkeypatch):
    """A service with a first key and a key of its own to encrypt with, told that loopback may be called."""
    for name, value in {
        "TUNESMITH_BOOTSTRAP_KEY": BOOTSTRAP,
        "TUNESMITH_SECRET_KEY": SERVICE_KEY,
        "TUNESMITH_WEBHOOK_ALLOW_CIDRS": LOOPBACK,
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("bootstrap_key", "secret_key", "webhook_allow_cidrs"):
        setattr(supervised.settings, name, getattr(Settings(), name))
    client.app.state.keyring = Keyring(engine, SecretStr(BOOTSTRAP))
    client.headers["authorization"] = f"Bearer {BOOTSTRAP}"
    return client


def ask(client, method, path, **options):
    answer = client.request(method, path, **options)
    assert answer.is_success, answer.text
    return answer.json()


@pytest.mark.parametrize("name", ["unforeseen", "foreseen"])
def test_after_a_run_full_of_secrets_none_is_found(service, supervised, engine, tmp_path, caplog, name):
    caplog.set_level(logging.DEBUG)
    supervised.script(INDISCREET)
    with Receiver(answer=answer_with("500 Oops")) as receiver:
        for secret, value in STORED.items():
            ask(service, "PUT", f"/v1/secrets/{secret}", json={"value": value})
        endpoint = ask(service, "POST", "/v1/webhook_endpoints", json={"url": receiver.url()})
        key = ask(service, "POST", "/v1/keys", json={"name": "ci"})["key"]
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", json.dumps(ROW) + "\n")}}
        spec = {
            "name": name,
            "base_model": "smollm2-135m-instruct",
            "dataset": {"file": ask(service, "POST", "/v1/files", **form)["id"]},
            "hub_token": "secret:hf",
            "webhook": {"url": receiver.url(path="/own"), "secret": "secret:hook"},
            "publish": [{"repo": "me/x", "artifacts": ["adapter"], "token": "secret:push"}],
            "exports": [{"kind": "adapter"}],
        }
        own = {"authorization": f"Bearer {key}", "idempotency-key": "once"}
        job_id = ask(service, "POST", "/v1/jobs", json=spec, headers=own)["id"]
        supervised.work()
        notify(supervised.runner)
        sent = "".join(f"{got.headers}{got.body}" for got in receiver.received)
    job = ask(service, "GET", f"/v1/jobs/{job_id}")
    assert (job["status"], len(receiver.received)) == ("failed", 2), job
    log = service.get(f"/v1/jobs/{job_id}/logs").text
    assert "the token is [secret]" in log
    assert "Traceback" in log
    if name == "foreseen":
        assert [artifact["name"] for artifact in job["artifacts"]] == ["adapter/model"]
        assert job["error"]["message"] == "The hub refuses [secret]."
    with read_session(engine) as session:
        assert secrets.read(session, supervised.settings, "default", "hf") == STORED["hf"]
    places = {"sent": sent, "logged": caplog.text}
    with engine.connect() as connection:
        places["database"] = "\n".join(connection.connection.driver_connection.iterdump())
    paths = ["", "/events", "/events?stream=true", "/metrics", "/logs", "/report", "/artifacts", "/checkpoints", "/attempts"]
    paths = [f"/v1/jobs/{job_id}{path}" for path in paths]
    others = ("jobs", "files", "secrets", "keys", "webhook_endpoints", "webhook_deliveries", "workers", "queue")
    for path in [*paths, *(f"/v1/{other}" for other in others), "/v1/fine_tuning/jobs"]:
        answer = service.get(path)
        assert answer.is_success, answer.text
        places[path] = answer.text
    files = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.endswith("ps-train") for path in files)
    assert any(path.endswith("input-train") for path in files)
    for word in (*STORED.values(), BOOTSTRAP, SERVICE_KEY, key, endpoint["signing_secret"]):
        for form in (word, word.removeprefix("whsec_"), word.replace("/", "%2F")):
            assert [place for place, text in places.items() if form in text] == []
            assert [path for path, content in files.items() if form.encode() in content] == []
