"""SQL about workers and what waits for them."""

from datetime import datetime, timedelta

from sqlalchemy import func
from sqlmodel import Session, col, select

from app.jobs.states import Resource, StageStatus
from app.models import StageRun, Worker, now


def page(session: Session) -> list[tuple[Worker, StageRun | None]]:
    """All that are known, oldest first, each with the stage run that it has."""
    statement = select(Worker, StageRun).join(StageRun, col(StageRun.id) == col(Worker.stage_run_id), isouter=True)
    return [(worker, run) for worker, run in session.exec(statement.order_by(col(Worker.started_at), col(Worker.id)))]


def alive_since(lease_seconds: float) -> datetime:
    """Who has given no sign of life since then is taken for dead."""
    return now() - timedelta(seconds=lease_seconds)


def list_alive(session: Session, lease_seconds: float) -> list[Worker]:
    return list(session.exec(select(Worker).where(Worker.heartbeat_at >= alive_since(lease_seconds))))


def count_runs(session: Session) -> dict[tuple[Resource, StageStatus], tuple[int, datetime]]:
    """Of the queued and running stage runs: how many, and when the oldest was queued."""
    statement = (
        select(StageRun.resource, StageRun.status, func.count(), func.min(StageRun.created_at))
        .where(col(StageRun.status).in_([StageStatus.QUEUED, StageStatus.RUNNING]))
        .group_by(col(StageRun.resource), col(StageRun.status))
    )
    return {
        (Resource(resource), StageStatus(status)): (count, oldest)
        for resource, status, count, oldest in session.exec(statement)
    }
