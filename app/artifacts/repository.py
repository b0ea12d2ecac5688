"""SQL about artifacts."""

from collections.abc import Collection

from sqlmodel import Session, col, select

from app.errors import NotFound
from app.models import Artifact, Blob


def list_of(session: Session, job_ids: Collection[str]) -> list[tuple[Artifact, int]]:
    """The artifacts of some jobs with their sizes, by name."""
    statement = select(Artifact, Blob.bytes).join(Blob).where(col(Artifact.job_id).in_(job_ids)).order_by(col(Artifact.name))
    return [(artifact, size) for artifact, size in session.exec(statement)]


def get(session: Session, job_id: str, name: str) -> Artifact:
    artifact = session.exec(select(Artifact).where(Artifact.job_id == job_id, Artifact.name == name)).first()
    if artifact is None:
        message = f"{job_id} has no artifact {name!r}. GET /v1/jobs/{job_id}/artifacts lists those that it has so far."
        raise NotFound(message, param="name", code="artifact_not_found")
    return artifact
