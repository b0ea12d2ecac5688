"""SQL about artifacts."""

from collections.abc import Collection

import sqlalchemy
from sqlalchemy import bindparam, delete
from sqlmodel import Session, SQLModel, col, select

from app.errors import NotFound
from app.jobs.states import HELD, EventType, FailureCode, JobStatus, StageStatus
from app.looks import Look, read_rows
from app.models import Artifact, Event, Job, StageRun

ARTIFACT, BLOB = (SQLModel.metadata.tables[name] for name in ("artifact", "blob"))
LISTED = sqlalchemy.select(ARTIFACT, BLOB.c.bytes).join(BLOB).order_by(ARTIFACT.c.name)
OF_JOBS = LISTED.where(ARTIFACT.c.job_id.in_(bindparam("job_ids", expanding=True)))
OF_JOB = LISTED.where(ARTIFACT.c.job_id == bindparam("job_id"))
"""Built once: every look at a job asks one of them."""


def list_of(session: Session | Look, job_ids: Collection[str]) -> list[tuple[Artifact, int]]:
    """The artifacts of some jobs with their sizes, by name; to be read only."""
    if len(job_ids) == 1:
        found = read_rows(session, OF_JOB, job_id=next(iter(job_ids)))
    else:
        found = read_rows(session, OF_JOBS, job_ids=job_ids)
    return [(row, row.bytes) for row in found]


def get(session: Session, job_id: str, name: str) -> Artifact:
    artifact = session.exec(select(Artifact).where(Artifact.job_id == job_id, Artifact.name == name)).first()
    if artifact is None:
        job = session.get_one(Job, job_id)
        raise not_verified(session, job, name) if is_held(session, job, name) else not_there(job_id, name)
    return artifact


def list_beginning(session: Session, job_id: str, prefix: str) -> list[tuple[Artifact, int]]:
    """Those of a job whose names begin with `prefix`, with their sizes, by name. NotFound when there are none."""
    found = [(artifact, size) for artifact, size in list_of(session, [job_id]) if artifact.name.startswith(prefix)]
    if not found:
        raise not_there(job_id, prefix)
    return found


def is_held(session: Session, job: Job, name: str) -> bool:
    """Whether the file was made, and waits for its verification or has failed it."""
    if job.status is JobStatus.SUCCEEDED:
        return False
    made = (StageRun.job_id == job.id, StageRun.status == StageStatus.SUCCEEDED, col(StageRun.stage).in_(HELD))
    outputs = session.exec(select(StageRun.outputs).where(*made))
    return any(file["name"] == name for output in outputs for file in (output or {})["files"])


def not_verified(session: Session, job: Job, name: str) -> NotFound:
    """Says what was found of a file that has failed."""
    message = f"{name} is made, but it is offered only once the stage verify has found it right."
    if (job.error or {}).get("code") == FailureCode.VERIFICATION_FAILED:
        warnings = (Event.job_id == job.id, Event.type == EventType.JOB_WARNING)
        told = session.exec(select(Event).where(*warnings).order_by(col(Event.number).desc()))
        said = next((f" {event.message}" for event in told if event.data.get("artifact") == name), "")
        message += f"{said} GET /v1/jobs/{job.id}/report has the figures."
    return NotFound(message, param="name", code="artifact_not_verified")


def not_there(job_id: str, name: str) -> NotFound:
    message = f"{job_id} has no artifact {name!r}. GET /v1/jobs/{job_id}/artifacts lists those that it has so far."
    return NotFound(message, param="name", code="artifact_not_found")


def find_owners(session: Session, job_ids: Collection[str]) -> set[str]:
    """Those of the jobs that have artifacts."""
    return set(session.exec(select(Artifact.job_id).where(col(Artifact.job_id).in_(job_ids)).distinct()))


def remove(session: Session, job_id: str, names: Collection[str]) -> set[str]:
    """Deletes the rows; answers the hashes that they named."""
    statement = delete(Artifact).where(col(Artifact.job_id) == job_id, col(Artifact.name).in_(names))
    return set(session.scalars(statement.returning(col(Artifact.blob_sha256))))
