"""SQL about workers."""

from datetime import timedelta

from sqlmodel import Session, col, select

from app.models import Worker, now


def list_alive(session: Session, lease_seconds: float) -> list[Worker]:
    """Those that have given a sign of life within a lease, oldest first."""
    since = now() - timedelta(seconds=lease_seconds)
    return list(session.exec(select(Worker).where(Worker.heartbeat_at >= since).order_by(col(Worker.started_at))))
