"""The database: one sync engine and two kinds of session, used alike by the API, the workers and the reaper.

SQLite runs in WAL mode. A writing session takes the write lock when it begins, so that it never has to be retried in the
middle; a reading one never waits. Code that rings a queue (`app.queue`) does so after the commit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, create_engine, event
from sqlmodel import Session

from app.reserve import give_up_reserve, reserve_of

SQLITE_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "busy_timeout=15000",
    "foreign_keys=ON",
    "temp_store=MEMORY",
)


READERS: WeakKeyDictionary[Engine, Engine] = WeakKeyDictionary()
"""The engine for reading sessions, where it is another."""


def make_engine(url: str) -> Engine:
    """The engine for writing sessions; SQLite has connections of their own for reading ones."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        if engine.url.database:
            Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_writing)
        if reserve := reserve_of(engine):
            event.listen(engine, "begin", lambda _: give_up_reserve(reserve), insert=True)
        reader = READERS[engine] = create_engine(url)
        event.listen(reader, "connect", _configure_sqlite)
        event.listen(reader, "checkout", _begin_reading)
        event.listen(engine, "engine_disposed", lambda _: reader.dispose())
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    for pragma in SQLITE_PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin_writing(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin_reading(connection: Any, _record: Any, _proxy: Any) -> None:
    """As the pool hands the connection out: an engine that listens to nothing runs each statement a sixth faster."""
    connection.execute("BEGIN")


@contextmanager
def write_session(engine: Engine, tenant_id: str | None = None, request_id: str | None = None) -> Iterator[Session]:
    """Commits at the end, rolls back on an exception. Objects stay readable after the commit. Tenant: see `app.tenancy`.

    Events and stage runs that it adds name the request.
    """
    info = {"tenant_id": tenant_id} if tenant_id else {}
    info |= {"request_id": request_id} if request_id else {}
    with Session(engine, expire_on_commit=False, info=info) as session:
        yield session
        session.commit()


@contextmanager
def read_session(engine: Engine, tenant_id: str | None = None) -> Iterator[Session]:
    info = {"tenant_id": tenant_id} if tenant_id else {}
    with Session(READERS.get(engine, engine), expire_on_commit=False, info=info) as session:
        yield session
