"""The stage `publish` as the last of a job: its inputs, its token, and what becomes of a job that cannot be published."""

import json

import pytest
from hub_server import HubServer
from supervising import Supervised
from test_control import retry

from app.db import write_session
from app.jobs.states import JobStatus, Resource, Stage, StageStatus
from app.secrets import service as secrets

SCRIPT = """
    print("stage", stage, sorted(inputs.secrets))
    if stage == "prepare":
        values = {"base_model": {"name": "m", "revision": None, "card": {}}, "counts": {"rows": 8}}
    if stage == "train":
        (out / "adapter").mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (out / "adapter" / name).write_text("{}")
            files.append(OutputFile.of(out, out / "adapter" / name, name=f"adapter/{name}", kind="adapter"))
        report("summary", train_loss=1.5, eval_loss=1.25)
    if stage == "publish":
        from worker.publishing import failures
        from worker.stages import publish
        failures.PAUSES = (0.01,)
        values = publish.run(spec, inputs, out, report).values
"""
PUBLISH = [
    {"repo": "me/one", "artifacts": ["adapter"], "token": "secret:one"},
    {"repo": "me/two", "artifacts": ["adapter"], "token": "secret:two", "private": False},
]


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for name in ("one", "two"):
            server.enrol(f"hf_{name}", name="me", role="write")
        yield server


@pytest.fixture
def submit(supervised: Supervised):
    supervised.script(SCRIPT)

    def submit():
        for name in ("one", "two"):
            put(supervised, name, f"hf_{name}")
        return supervised.submit(base_model="smollm2-135m-instruct", hub_token="secret:reads", publish=PUBLISH)

    return submit


def put(supervised, name, value):
    with write_session(supervised.engine, "default") as session:
        secrets.put(session, supervised.settings, name, value)


def log(supervised, job_id, stage, attempt=1):
    return (supervised.storage.attempt_folder(job_id, stage, attempt) / "log.txt").read_text()


def attempts(supervised, job_id):
    return [(run.stage, run.status) for run in supervised.runs(job_id)]


def test_a_job_ends_with_its_adapter_in_two_repositories_and_its_tokens_only_where_they_are_needed(hub, supervised, submit):
    put(supervised, "reads", "hf_reader")
    job_id = submit()
    supervised.work()
    assert supervised.job(job_id).status is JobStatus.SUCCEEDED
    for name, private in (("me/one", True), ("me/two", False)):
        files = hub.head(name)
        assert set(files) == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
        assert b"| Loss | \xe2\x80\x93 | 1.25 |" in files["README.md"]
        assert hub.repositories["models", name].private is private
    published = supervised.runs(job_id)[-1].outputs["values"]["published"]
    assert [(entry["repo"], entry["files"]) for entry in published] == [("me/one", 3), ("me/two", 3)]
    assert published[0]["commit"] == hub.repositories["models", "me/one"].branches["main"]
    # the tokens to publish with are for the first stage and the last
    assert log(supervised, job_id, "prepare").splitlines()[0] == "stage prepare ['one', 'reads', 'two']"
    assert log(supervised, job_id, "train").splitlines()[0] == "stage train ['reads']"
    folder = supervised.storage.attempt_folder(job_id, "publish", 1)
    assert not [path for path in folder.rglob("*") if path.is_file() and b"hf_one" in path.read_bytes()]


@pytest.mark.provokes("hub_unauthorized")
def test_what_cannot_be_published_costs_no_training_and_is_published_by_a_retry(hub, supervised, submit):
    put(supervised, "reads", "hf_reader")
    job_id = submit()
    hub.tokens.discard("hf_two")
    supervised.work()
    job = supervised.job(job_id)
    assert (job.status, job.stage) == (JobStatus.FAILED, Stage.PUBLISH)
    assert (job.error["code"], job.error["param"]) == ("hub_unauthorized", "publish[1].token")
    assert "hf_two" not in json.dumps(job.error)
    first = hub.repositories["models", "me/one"].branches["main"]
    hub.enrol("hf_new", name="me", role="write")
    put(supervised, "two", "hf_new")
    assert retry(supervised, job_id) is Stage.PUBLISH
    supervised.work()
    assert supervised.job(job_id).status is JobStatus.SUCCEEDED
    assert hub.repositories["models", "me/one"].branches["main"] == first
    assert "README.md" in hub.head("me/two")
    assert attempts(supervised, job_id) == [
        (Stage.PREPARE, StageStatus.SUCCEEDED),
        (Stage.TRAIN, StageStatus.SUCCEEDED),
        (Stage.PUBLISH, StageStatus.FAILED),
        (Stage.PUBLISH, StageStatus.SUCCEEDED),
    ]


@pytest.mark.provokes("hub_unavailable")
def test_a_hub_that_is_away_fails_the_job_at_its_last_stage_and_another_repository_will_do(hub, supervised, submit):
    put(supervised, "reads", "hf_reader")
    job_id = submit()
    hub.befall("me/one", times=99, status=503)
    supervised.work()
    job = supervised.job(job_id)
    assert (job.status, job.stage, job.error["code"]) == (JobStatus.FAILED, Stage.PUBLISH, "hub_unavailable")
    assert retry(supervised, job_id, publish=[PUBLISH[0] | {"repo": "me/three"}]) is Stage.PUBLISH
    supervised.work()
    assert supervised.job(job_id).status is JobStatus.SUCCEEDED
    assert "README.md" in hub.head("me/three")


def test_a_token_deleted_while_the_job_trained_is_asked_for(hub, supervised, submit):
    put(supervised, "reads", "hf_reader")
    job_id = submit()
    supervised.work(Resource.CPU)
    with write_session(supervised.engine, "default") as session:
        secrets.delete(session, "two")
    supervised.work()
    error = supervised.job(job_id).error
    assert (error["code"], error["param"]) == ("hub_unauthorized", "publish[1].token")
    assert "tunesmith secrets set two" in error["hint"]
