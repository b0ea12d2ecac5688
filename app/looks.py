"""Looks: what is only shown is read as rows of statements over tables, without the objects of the ORM.

What is polled is read without a session, too. SQLAlchemy writes such a statement and says how its columns are converted, once;
SQLite is then asked through its driver, at half the cost. Another database is asked through a session.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Engine, Select
from sqlalchemy.dialects import sqlite
from sqlmodel import Session

from app.db import READERS, read_session

DIALECT = sqlite.dialect()


class Look:
    """A reading transaction of one tenant, for statements that are built once and whose parameters are single values."""

    def __init__(self, cursor: Any, tenant_id: str):
        self.info = {"tenant_id": tenant_id}
        self._cursor = cursor

    def find(self, statement: Select[Any], parameters: dict[str, Any]) -> list[Any]:
        query = prepare(statement)
        values = query.constants | parameters
        rows = self._cursor.execute(query.text, [values[name] for name in query.names])
        return [query.make(row) for row in rows]


@contextmanager
def look(engine: Engine, tenant_id: str) -> Iterator[Look | Session]:
    if engine not in READERS:
        with read_session(engine, tenant_id) as session:
            yield session
        return
    connection = READERS[engine].raw_connection()
    try:
        yield Look(connection.cursor(), tenant_id)
    finally:
        connection.close()


def read_rows(session: Session | Look, statement: Select[Any], **parameters: Any) -> Sequence[Any]:
    """Rows with the columns as attributes. A session's changes are written first."""
    if isinstance(session, Look):
        return session.find(statement, parameters)
    session.flush()
    return session.connection().execute(statement, parameters).all()


class Query:
    """A statement as SQLite takes it."""

    def __init__(self, statement: Select[Any]):
        compiled = statement.compile(dialect=DIALECT)
        self.text, self.names, self.constants = compiled.string, compiled.positiontup or [], compiled.params
        self._columns = [
            (str(column.key), column.type.dialect_impl(DIALECT).result_processor(DIALECT, None))
            for column in statement.selected_columns
        ]

    def make(self, values: Sequence[Any]) -> Any:
        columns = zip(self._columns, values, strict=True)
        return SimpleNamespace(**{name: convert(value) if convert else value for (name, convert), value in columns})


prepare = cache(Query)
