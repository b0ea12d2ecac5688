"""Whose rows a session sees. A request's session has a tenant, that of its key; those of workers and of the reaper have none.

Reads of what a tenant owns go through `owned` or `sees`; new rows are given `tenant_of`. Content in storage is shared by its
hash, and reached only through a row.
"""

from typing import Any, Protocol

from sqlalchemy import ColumnElement, true
from sqlmodel import Session, col

from app.looks import Look

DEFAULT_TENANT = "default"


class Owned(Protocol):
    tenant_id: str


def tenant_of(session: Session) -> str:
    """KeyError for a session that has none: who works for all must say for whom."""
    return str(session.info["tenant_id"])


def owned(session: Session, table: Any) -> ColumnElement[bool]:
    """The condition that a row of the table is one that the session sees."""
    tenant_id = session.info.get("tenant_id")
    return true() if tenant_id is None else col(table.tenant_id) == tenant_id


def sees(session: Session | Look, row: Owned) -> bool:
    return session.info.get("tenant_id") in (None, row.tenant_id)
