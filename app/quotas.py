"""How much a tenant may have at a time. Without a setting there is no limit."""

from sqlalchemy import func
from sqlmodel import Session, col, select

from app.disk import in_words
from app.errors import QuotaExceeded
from app.jobs.states import TERMINAL
from app.models import Artifact, Blob, File, Job
from app.settings import Settings
from app.tenancy import owned


def check_jobs(session: Session, settings: Settings) -> None:
    """QuotaExceeded when the session's tenant may not have one more job that has not ended, or has used up its storage."""
    check_storage(session, settings, 0)
    limit = settings.max_open_jobs
    if limit is None:
        return
    ended = col(Job.status).in_(TERMINAL)
    count = session.exec(select(func.count()).select_from(Job).where(owned(session, Job), ~ended)).one()
    if count >= limit:
        message = f"{count} jobs have not ended, and no more than {limit} may wait, run or be paused at a time."
        raise QuotaExceeded(f"{message} Wait for one to end, or cancel one.")


def check_storage(session: Session, settings: Settings, size: int) -> None:
    """QuotaExceeded when `size` bytes more are too many for the session's tenant; with 0, when it has no room left."""
    limit = settings.max_stored_bytes
    if limit is None:
        return
    used = sum_bytes(session)
    if used + max(size, 1) > limit:
        message = f"Files and artifacts take {in_words(used)} of the {in_words(limit)} that may be stored"
        raise QuotaExceeded(f"{message}{f', and {in_words(size)} were to be added' if size else ''}. Delete jobs or files.")


def sum_bytes(session: Session) -> int:
    """What the files and artifacts of the session's tenant take; content that several name counts for each."""
    total = 0
    for table in (File, Artifact):
        statement = select(func.sum(Blob.bytes)).select_from(table).join(Blob).where(owned(session, table))
        total += session.exec(statement).one() or 0
    return total
