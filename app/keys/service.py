"""What can be done with keys."""

import hashlib
import secrets
from datetime import timedelta

from sqlmodel import Session

from app.errors import Forbidden
from app.keys import repository
from app.keys.schemas import NewKey
from app.keys.scopes import Principal
from app.models import ApiKey, now

PREFIX = "tsk_"
HINT_LENGTH = 4


def hash_key(key: str) -> str:
    """A key has 256 random bits, so one fast hash is enough: nothing can be guessed from it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def create(session: Session, caller: Principal, wanted: NewKey) -> tuple[ApiKey, str]:
    """The row, and the key itself, which is stored nowhere. Forbidden for a tenant that is not the caller's to give keys to."""
    tenant_id = wanted.tenant or caller.tenant_id
    if tenant_id != caller.tenant_id and not caller.is_operator:
        raise Forbidden("Only an administrator of the tenant 'default' may make keys for another tenant.", param="tenant")
    key = PREFIX + secrets.token_urlsafe(32)
    row = ApiKey(
        tenant_id=tenant_id,
        name=wanted.name,
        sha256=hash_key(key),
        hint=key[-HINT_LENGTH:],
        scopes=sorted(set(wanted.scopes)),
        expires_at=now() + timedelta(seconds=wanted.expires_in_seconds) if wanted.expires_in_seconds else None,
    )
    session.add(row)
    session.flush()
    return row, key


def list_all(session: Session, caller: Principal) -> list[ApiKey]:
    return repository.list_all(session, find_reach(caller))


def revoke(session: Session, caller: Principal, key_id: str) -> None:
    key = repository.get(session, key_id, find_reach(caller))
    key.revoked_at = now()
    session.add(key)


def find_reach(caller: Principal) -> str | None:
    """The tenant whose keys the caller looks after; None for all."""
    return None if caller.is_operator else caller.tenant_id
