"""Run by Alembic, on the connection that `app.migration` hands over; for the command line, on the configured database."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection, TypeDecorator
from sqlmodel import SQLModel

import app.models  # noqa: F401  the import fills the metadata
from app.db import make_engine
from app.migration import connect_for_migration
from app.settings import Settings


def render_plain_type(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Migrations are history: they name SQL types, not the classes of today's models."""
    return f"sa.{item.impl!r}" if kind == "type" and isinstance(item, TypeDecorator) else False


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        render_as_batch=True,
        render_item=render_plain_type,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    with connect_for_migration(make_engine(Settings().database)) as opened:
        run(opened)
