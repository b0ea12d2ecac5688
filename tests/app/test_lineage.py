"""Jobs that start from another job's adapter, through the API."""

import pytest

from app.db import write_session
from app.jobs.states import JobStatus
from app.models import Job

LORA = {"r": 8, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def source(submit, take_up, end_job, make_artifact):
    """A job that has succeeded."""
    job = submit(lora=LORA)
    take_up(job["id"])
    make_artifact(job["id"], "adapter/adapter_model.safetensors", b"weights")
    end_job(job["id"], JobStatus.SUCCEEDED)
    return job


def refuse(client, spec):
    answer = client.post("/v1/jobs", json=spec)
    assert answer.status_code == 422, answer.text
    return answer.json()["error"]["details"]


def make_spec(source, **more):
    return {key: source["spec"][key] for key in ("base_model", "dataset", "lora")} | {"from_job": source["id"]} | more


def test_it_takes_other_rows_and_settings(client, upload, source):
    spec = make_spec(source, dataset={"file": upload()["id"]}, training={"max_steps": 3}, lora=LORA | {"dropout": 0.1})
    answer = client.post("/v1/jobs", json=spec)
    assert answer.status_code == 201, answer.text
    assert answer.json()["spec"]["from_job"] == source["id"]
    reordered = client.post("/v1/jobs", json=make_spec(source, lora=LORA | {"target_modules": ["v_proj", "q_proj"]}))
    assert reordered.status_code == 201


def test_it_gets_the_revision_of_the_other(client, engine, source):
    with write_session(engine) as session:
        job = session.get_one(Job, source["id"])
        job.spec = job.spec | {"revision": "0.1.2-1"}
        session.add(job)
    answer = client.post("/v1/jobs", json=make_spec(source))
    assert answer.json()["spec"]["revision"] == "0.1.2-1"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"lora": LORA | {"r": 16}}, "lora.r"),
        ({"lora": LORA | {"alpha": 16}}, "lora.alpha"),
        ({"lora": LORA | {"variant": "dora"}}, "lora.variant"),
        ({"lora": LORA | {"target_modules": "all-linear"}}, "lora.target_modules"),
        ({"lora": LORA | {"modules_to_save": ["lm_head"]}}, "lora.modules_to_save"),
    ],
)
def test_another_shape_is_refused_with_the_one_that_fits(client, source, more, param):
    spec = make_spec(source, **more)
    (detail,) = refuse(client, spec)
    assert detail["param"] == param
    patched = spec | {"lora": spec["lora"] | detail["patch"]["lora"]}
    assert client.post("/v1/jobs", json=patched).status_code == 201


def test_a_job_without_an_adapter_is_refused(client, submit, source):
    waiting = submit()
    (detail,) = refuse(client, make_spec(source, from_job=waiting["id"]))
    assert detail["param"] == "from_job" and "queued" in detail["message"]
    (detail,) = refuse(client, make_spec(source, from_job="job_none"))
    assert detail["param"] == "from_job" and "no job" in detail["message"]


def test_the_other_cannot_be_deleted_before_this_one_has_ended(client, source):
    job = client.post("/v1/jobs", json=make_spec(source)).json()
    answer = client.delete(f"/v1/jobs/{source['id']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_in_use")
    assert job["id"] in answer.json()["error"]["message"]
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/jobs/{source['id']}").status_code == 200
    retried = client.post(f"/v1/jobs/{job['id']}/retry")
    assert retried.status_code == 422
    assert retried.json()["error"]["details"][0]["param"] == "from_job"
