"""A secret's way to the stage that needs it: afterwards it is nowhere but, encrypted, in the database."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hub_server import HubServer
from supervising import Supervised

from app.db import read_session, write_session
from app.jobs.states import JobStatus, Resource, Stage
from app.secrets import service as secrets
from worker.data import built_in_model
from worker.data.gguf_weights import read_gguf
from worker.runner import Runner, work

TOKEN = "hf_thisIsTheTokenOfTheTest"
ROWS = [{"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]} for n in range(8)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def list_files_with_token(folder):
    found = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file() and TOKEN.encode() in path.read_bytes():
                found.append(path)
    return found


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that looks at every process of the machine, and at every file of the service, while a client waits for its answer:
    what a stage leaves in its attempt's folder is tidied away when it has ended."""
    with HubServer() as server:
        server.seen = set()

        def look():
            for process in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        if TOKEN.encode() in (process / name).read_bytes():
                            server.seen.add(f"{name} of {(process / 'cmdline').read_text()}")
                    except OSError:
                        continue

            server.seen |= {str(path) for path in list_files_with_token(tmp_path / "data")}

        server.on_request = look
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def model_files():
    """The built-in model's tokenizer with a config: all that `prepare` reads of a base model, beside the weights' presence."""
    metadata, _ = read_gguf(built_in_model.source_file())
    files = {name: json.dumps(content).encode() for name, content in built_in_model.json_files(metadata).items()}
    template = metadata["tokenizer.chat_template"].encode()
    return files | {"chat_template.jinja": template, "model.safetensors": b"\x02\0\0\0\0\0\0\0{}"}


@pytest.fixture
def run(client, engine, settings, storage, no_broker, monkeypatch, tmp_path):
    """Stores the token, submits a job that names it, and runs what a cpu worker would. The job and all that was written."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))

    def run(base_model, *, meanwhile=lambda: None, **fields):
        assert client.put("/v1/secrets/hf", json={"value": TOKEN}).status_code == 200
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", LINES)}}
        spec = {
            "base_model": base_model,
            "hub_token": "secret:hf",
            "dataset": {"file": client.post("/v1/files", **form).json()["id"]},
            "exports": [{"kind": "adapter"}],
        } | fields
        job_id = client.post("/v1/jobs", json=spec).json()["id"]
        meanwhile()
        work(Runner(engine, settings, storage, "wrk_test"), Resource.CPU)
        return client.get(f"/v1/jobs/{job_id}").json()

    return run


@pytest.fixture
def storage(settings):
    from app.storage import Storage

    return Storage(settings.root)


def list_leaks(client, engine, job_id, tmp_path):
    """Every place that holds the token after a run."""
    found = [str(path) for path in list_files_with_token(tmp_path)]
    with engine.connect() as connection:
        dump = "\n".join(connection.connection.driver_connection.iterdump())
    texts = {"database": dump}
    for address in ("", "/events", "/metrics", "/logs", "/report", "/artifacts", "/checkpoints", "/attempts"):
        texts[address] = client.get(f"/v1/jobs/{job_id}{address}").text
    for address in ("/v1/jobs", "/v1/secrets", "/v1/workers", "/v1/files", "/openapi.json"):
        texts[address] = client.get(address).text
    assert "secret:hf" in texts[""]
    return found + [place for place, text in texts.items() if TOKEN in text]


def test_a_stage_reads_a_private_model_and_leaves_no_trace_of_the_token(
    hub, run, client, engine, model_files, tmp_path, caplog
):
    caplog.set_level("DEBUG")
    hub.add("models", "org/private", model_files, private=True, readers={TOKEN})
    hub.add("datasets", "org/rows", {"train.jsonl": LINES}, gated=True, readers={TOKEN})
    job = run("org/private", dataset={"hub": {"repo": "org/rows"}})
    assert job["stages"][0]["status"] == "succeeded", job
    assert any("model.safetensors" in request for request in hub.requests)
    assert hub.seen == set()
    assert list_leaks(client, engine, job["id"], tmp_path) == []
    assert TOKEN not in caplog.text


def test_a_token_that_the_hub_refuses_is_not_told(hub, run, client, engine, model_files, tmp_path, caplog):
    hub.add("models", "org/private", model_files, private=True)
    job = run("org/private")
    assert (job["error"]["code"], job["error"]["param"]) == ("hub_unauthorized", "hub_token")
    assert hub.seen == set()
    assert list_leaks(client, engine, job["id"], tmp_path) == []
    assert TOKEN not in caplog.text


def test_a_secret_that_was_deleted_meanwhile_fails_the_job_clearly(hub, run, client, model_files):
    hub.add("models", "org/private", model_files, private=True, readers={TOKEN})
    job = run("org/private", meanwhile=lambda: client.delete("/v1/secrets/hf"))
    assert (job["status"], job["error"]["code"], job["error"]["param"]) == ("failed", "hub_unauthorized", "hub_token")
    assert "tunesmith secrets set hf" in job["error"]["hint"]
    assert hub.requests == []


def put_secret(supervised: Supervised, name: str, value: str) -> None:
    with write_session(supervised.engine, "default") as session:
        secrets.put(session, supervised.settings, name, value)


def test_a_stage_gets_only_what_its_spec_names_and_later_ones_do_without(supervised: Supervised) -> None:
    supervised.script("""
        print(sorted(inputs.secrets.items()))
        while stage == "prepare" and not (inputs.models_dir / "go").exists():
            time.sleep(0.02)
    """)
    put_secret(supervised, "hf", "one")
    put_secret(supervised, "other", "two")
    job_id = supervised.submit(hub_token="secret:hf")
    with supervised.working():
        with write_session(supervised.engine, "default") as session:
            secrets.delete(session, "other")
        (supervised.scripts / "go").touch()
    with write_session(supervised.engine, "default") as session:
        secrets.delete(session, "hf")
    supervised.work()
    assert supervised.job(job_id).status is JobStatus.SUCCEEDED
    logs = [
        (supervised.storage.job_folder(job_id) / stage / "1" / "log.txt").read_text().strip()
        for stage in (Stage.PREPARE, Stage.TRAIN)
    ]
    assert logs == ["[('hf', 'one')]", "[]"]
    with read_session(supervised.engine) as session:
        assert secrets.read(session, supervised.settings, "default", "hf") is None
