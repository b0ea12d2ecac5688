"""SQL about secrets. Nothing here commits."""

from sqlmodel import Session, col, select

from app.errors import NotFound
from app.models import Secret


def find(session: Session, tenant_id: str, name: str, *, lock: bool = False) -> Secret | None:
    statement = select(Secret).where(Secret.tenant_id == tenant_id, Secret.name == name)
    return session.exec(statement.with_for_update() if lock else statement).one_or_none()


def get(session: Session, tenant_id: str, name: str) -> Secret:
    secret = find(session, tenant_id, name)
    if secret is None:
        raise NotFound(
            f"There is no secret {name!r}. GET /v1/secrets lists their names.", param="name", code="secret_not_found"
        )
    return secret


def list_all(session: Session, tenant_id: str) -> list[Secret]:
    """By name."""
    return list(session.exec(select(Secret).where(Secret.tenant_id == tenant_id).order_by(col(Secret.name))))
