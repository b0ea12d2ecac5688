"""SQL about uploaded files. Nothing here commits."""

from collections.abc import Collection

from sqlalchemy import or_
from sqlmodel import Session, col, select

from app.errors import NotFound
from app.jobs.states import TERMINAL
from app.models import Blob, File, Job
from app.tenancy import owned, sees


def get(session: Session, file_id: str) -> File:
    file = find(session, file_id)
    if file is None:
        raise NotFound(f"There is no file {file_id!r}. GET /v1/files lists the files.", param="file_id", code="file_not_found")
    return file


def find(session: Session, file_id: str) -> File | None:
    file = session.get(File, file_id)
    return file if file and sees(session, file) else None


def get_bytes(session: Session, file: File) -> int:
    return session.get_one(Blob, file.blob_sha256).bytes


def page(session: Session, *, limit: int, after: str | None, purpose: str | None, newest_first: bool) -> list[tuple[File, int]]:
    """Files with their sizes: one more than `limit` where there are more."""
    order = col(File.id).desc() if newest_first else col(File.id)
    statement = select(File, Blob.bytes).join(Blob).where(owned(session, File)).order_by(order).limit(limit + 1)
    if after is not None:
        statement = statement.where(File.id < after if newest_first else File.id > after)
    if purpose is not None:
        statement = statement.where(File.purpose == purpose)
    return [(file, size) for file, size in session.exec(statement)]


def results_of(session: Session, job_ids: Collection[str]) -> dict[str, list[str]]:
    """The ids of the files that tell what jobs found, by job."""
    found: dict[str, list[str]] = {}
    statement = select(File.job_id, File.id).where(col(File.job_id).in_(job_ids)).order_by(col(File.id))
    for job_id, file_id in session.exec(statement):
        found.setdefault(job_id or "", []).append(file_id)
    return found


def hashes_of(session: Session, job_id: str) -> set[str]:
    """The content of a job's results."""
    return set(session.exec(select(File.blob_sha256).where(File.job_id == job_id)))


def find_job_using(session: Session, file_id: str) -> str | None:
    """The id of a job that has not ended and reads this file."""
    data_set = col(Job.spec)["dataset"]
    in_spec = or_(data_set["file"].as_string() == file_id, data_set["validation_file"].as_string() == file_id)
    return session.exec(select(Job.id).where(col(Job.status).not_in(TERMINAL), in_spec).limit(1)).first()
