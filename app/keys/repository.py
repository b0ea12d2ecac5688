"""SQL about API keys. Nothing here commits. A revoked key keeps its row, so that a server that had keys stays closed."""

from sqlmodel import Session, col, select

from app.errors import NotFound
from app.models import ApiKey


def get(session: Session, key_id: str, tenant_id: str | None) -> ApiKey:
    """Of that tenant, or with None of any."""
    key = session.get(ApiKey, key_id, with_for_update=True)
    if key is None or key.revoked_at is not None or tenant_id not in (None, key.tenant_id):
        raise NotFound(f"There is no key {key_id!r}. GET /v1/keys lists the keys.", param="key_id", code="key_not_found")
    return key


def list_all(session: Session, tenant_id: str | None) -> list[ApiKey]:
    """Those that were not revoked, newest first; of that tenant, or with None of all."""
    statement = select(ApiKey).where(col(ApiKey.revoked_at).is_(None)).order_by(col(ApiKey.id).desc())
    return list(session.exec(statement if tenant_id is None else statement.where(ApiKey.tenant_id == tenant_id)))


def is_empty(session: Session) -> bool:
    """Whether no key was ever stored."""
    return session.exec(select(ApiKey.id).limit(1)).first() is None
