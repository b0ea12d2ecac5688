"""Jobs that export a checkpoint of another one, through the API."""

import json

import pytest

from app.db import write_session
from app.jobs.states import JobStatus
from app.models import Checkpoint, StageRun

LORA = {"r": 8, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def source(submit, take_up, end_job, engine, storage):
    """A job that failed after step 20, and its checkpoint of that step."""
    job = submit(
        lora=LORA,
        training={"max_steps": 50},
        evaluation={"every_steps": 5},
        dataset={**rows(submit), "validation_fraction": 0.2},
    )
    run = take_up(job["id"])
    with write_session(engine) as session:
        train = StageRun(job_id=job["id"], stage="train", attempt=1, resource="gpu", status="failed")
        session.add(train)
        session.flush()
        row = Checkpoint(job_id=job["id"], stage_run_id=train.id, step=20, bytes=7)
        session.add(row)
        session.get_one(StageRun, run.id).status = "succeeded"
    folder = storage.checkpoint(job["id"], 1, 20)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"files": {}}))
    end_job(job["id"], JobStatus.FAILED)
    return job | {"checkpoint": row.id, "folder": folder}


def rows(submit):
    return {"file": submit()["spec"]["dataset"]["file"]}


def make_spec(source, **more):
    dataset = {"file": source["spec"]["dataset"]["file"]}
    return {"base_model": source["spec"]["base_model"], "dataset": dataset, "from_checkpoint": source["checkpoint"]} | more


def refuse(client, spec):
    answer = client.post("/v1/jobs", json=spec)
    assert answer.status_code == 422, answer.text
    return answer.json()["error"]["details"]


def test_it_takes_over_what_was_trained_with_and_chooses_the_rest(client, source):
    answer = client.post("/v1/jobs", json=make_spec(source, name="half-way", exports=[{"kind": "gguf"}], priority=3))
    assert answer.status_code == 201, answer.text
    spec = answer.json()["spec"]
    taken = ("lora", "training", "evaluation", "dataset", "method", "quantization")
    assert {name: spec[name] for name in taken} == {name: source["spec"][name] for name in taken}
    assert spec["exports"] == [{"kind": "gguf", "quantization": "q8_0"}]
    assert (spec["name"], spec["priority"], spec["from_job"]) == ("half-way", 3, source["id"])


def test_it_may_repeat_what_was_trained_with(client, source):
    repeated = {name: source["spec"][name] for name in ("lora", "training", "evaluation", "revision", "method")}
    more = {"from_job": source["id"], "training": repeated["training"] | {"precision": "auto"}}
    assert client.post("/v1/jobs", json=make_spec(source, **repeated | more)).status_code == 201


def test_other_rows_are_for_verifying_only(client, source, upload):
    spec = make_spec(source, dataset={"file": upload()["id"]})
    answer = client.post("/v1/jobs", json=spec)
    assert answer.status_code == 201, answer.text
    assert answer.json()["spec"]["dataset"]["validation_fraction"] == 0.0


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"base_model": "org/other"}, "base_model"),
        ({"revision": "v2"}, "revision"),
        ({"method": "cpt"}, "method"),
        ({"lora": {"r": 16}}, "lora.r"),
        ({"training": {"max_steps": 60}}, "training.max_steps"),
        ({"training": {"learning_rate": 1e-5}}, "training.learning_rate"),
        ({"early_stopping": {"patience": 1}}, "early_stopping"),
    ],
)
def test_what_would_have_to_be_trained_is_refused(client, source, more, param):
    [detail] = refuse(client, make_spec(source, **more))
    assert detail["param"] == param
    assert "nothing is trained here" in detail["message"]
    spec = make_spec(source, **more | detail["patch"])
    assert client.post("/v1/jobs", json=spec).status_code == 201


def test_a_checkpoint_must_be_there_whole_and_of_the_job_that_is_named(client, source, submit):
    [detail] = refuse(client, make_spec(source, from_checkpoint="ckpt_none"))
    assert detail["param"] == "from_checkpoint" and "no checkpoint" in detail["message"]
    [detail] = refuse(client, make_spec(source, from_job=submit()["id"]))
    assert (detail["param"], detail["patch"]) == ("from_job", {"from_job": source["id"]})
    (source["folder"] / "manifest.json").unlink()
    [detail] = refuse(client, make_spec(source))
    assert detail["param"] == "from_checkpoint" and "resumable" in detail["message"]


def test_the_source_cannot_be_deleted_before_the_export_has_ended(client, source):
    job = client.post("/v1/jobs", json=make_spec(source)).json()
    answer = client.delete(f"/v1/jobs/{source['id']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_in_use")
    assert job["id"] in answer.json()["error"]["message"]
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.post(f"/v1/jobs/{job['id']}/retry", json={"exports": [{"kind": "merged"}]}).status_code == 202
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/jobs/{source['id']}").status_code == 200
    retried = client.post(f"/v1/jobs/{job['id']}/retry")
    assert retried.status_code == 422
    assert retried.json()["error"]["details"][0]["param"] == "from_checkpoint"


def test_a_retry_cannot_begin_to_train(client, source):
    job = client.post("/v1/jobs", json=make_spec(source)).json()
    client.post(f"/v1/jobs/{job['id']}/cancel")
    answer = client.post(f"/v1/jobs/{job['id']}/retry", json={"training": {"learning_rate": 1e-5}})
    assert answer.json()["error"]["details"][0]["param"] == "training.learning_rate"


def test_training_does_not_go_on_from_an_export(client, source, take_up, end_job):
    job = client.post("/v1/jobs", json=make_spec(source, exports=[{"kind": "adapter"}])).json()
    take_up(job["id"])
    end_job(job["id"], JobStatus.SUCCEEDED)
    spec = make_spec(source, from_checkpoint=None, from_job=job["id"], lora=LORA)
    [detail] = refuse(client, spec)
    assert (detail["param"], detail["patch"]) == ("from_job", {"from_job": source["id"]})
