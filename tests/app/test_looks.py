"""Looks: rows past the session are those that a session finds, and of one moment."""

import pytest
from sqlalchemy import create_engine
from sqlmodel import Session

from app.artifacts import repository as artifacts
from app.db import read_session, write_session
from app.errors import NotFound
from app.jobs import repository, stage_runs
from app.jobs.states import JobStatus
from app.looks import Look, look
from app.models import Job


def test_a_look_finds_what_a_session_finds(engine, submit, take_up, end_job, make_artifact):
    done, waiting = submit(), submit()
    take_up(done["id"])
    make_artifact(done["id"], "gguf/model.gguf", b"GGUF")
    end_job(done["id"], JobStatus.FAILED)
    with look(engine, "default") as looking, read_session(engine, "default") as session:
        assert isinstance(looking, Look)
        for job_id in (waiting["id"], done["id"]):
            job, same = (repository.look(way, job_id) for way in (looking, session))
            assert vars(job) == same._asdict()
            runs, same_runs = (stage_runs.newest_by_stage(way, [job_id])[job_id] for way in (looking, session))
            assert [vars(run) for run in runs] == [run._asdict() for run in same_runs]
            files, same_files = (artifacts.list_of(way, [job_id]) for way in (looking, session))
            assert [vars(file) for file, _ in files] == [file._asdict() for file, _ in same_files]
            assert bool(files) == (job_id == done["id"])


def test_a_look_is_of_one_moment_and_leaves_no_transaction_behind(engine, submit):
    job_id = submit()["id"]
    with look(engine, "default") as looking:
        before = repository.look(looking, job_id)
        with write_session(engine) as session:
            session.get_one(Job, job_id).name = "another"
        assert repository.look(looking, job_id) == before
    with look(engine, "default") as looking:
        assert repository.look(looking, job_id).name == "another"


def test_a_look_sees_the_rows_of_its_tenant(engine, submit):
    job_id = submit()["id"]
    with look(engine, "another") as looking, pytest.raises(NotFound):
        repository.look(looking, job_id)


def test_another_database_is_looked_at_through_a_session(engine, submit):
    job_id = submit()["id"]
    other = create_engine(engine.url)
    with look(other, "default") as session:
        assert isinstance(session, Session)
        assert repository.look(session, job_id).id == job_id
    other.dispose()
