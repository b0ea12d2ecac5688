"""What one tenant owns, another cannot tell from what was never there."""

import pytest

from app.db import read_session, write_session
from app.errors import NotFound
from app.files import repository as files
from app.jobs import repository as jobs
from app.jobs import service
from app.jobs.spec import JobSpec
from app.jobs.states import JobStatus


def test_a_session_sees_its_own_tenants_rows_and_one_without_a_tenant_all(submit, engine):
    job = submit()
    file_id = job["spec"]["dataset"]["file"]
    for tenant, seen in (("default", True), (None, True), ("other", False)):
        with read_session(engine, tenant) as session:
            assert [row.id for row in jobs.page(session, limit=10, after=None, labels={})] == [job["id"]] * seen
            listed = files.page(session, limit=10, after=None, purpose=None, newest_first=True)
            assert [row.id for row, _ in listed] == [file_id] * seen
            assert (jobs.find(session, job["id"]) is not None, files.find(session, file_id) is not None) == (seen, seen)
    with read_session(engine, "other") as session, pytest.raises(NotFound):
        jobs.get(session, job["id"])


def test_a_spec_cannot_name_what_another_tenant_owns(client, submit, make_artifact, end_job, engine, settings):
    client.put("/v1/secrets/hf", json={"value": "hf_1"})
    job = submit(hub_token="secret:hf")
    make_artifact(job["id"], "adapter/adapter_model.safetensors", b"x")
    end_job(job["id"], JobStatus.RUNNING)
    end_job(job["id"], JobStatus.SUCCEEDED)
    spec = JobSpec.model_validate(job["spec"] | {"from_job": job["id"]})
    with write_session(engine, "default") as session:
        assert service.create(session, settings, spec).tenant_id == "default"
    with write_session(engine, "other") as session, pytest.raises(service.InvalidSpec) as refusal:
        service.create(session, settings, spec)
    assert [(detail["param"], detail["code"]) for detail in refusal.value.details] == [
        ("hub_token", "secret_not_found"),
        ("dataset.file", "dataset_not_found"),
        ("from_job", "invalid_spec"),
    ]
