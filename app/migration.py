"""Brings the database's tables up to date, with Alembic. Apart from `app.db`, because workers never migrate."""

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine

import migrations


def migration_config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", migrations.__path__[0])
    config.attributes["connection"] = connection
    return config


def migrate(engine: Engine) -> None:
    """Brings the tables up to date. Of two processes that start at once, one waits and then has nothing to do."""
    with connect_for_migration(engine) as connection:
        command.upgrade(migration_config(connection), "head")


@contextmanager
def connect_for_migration(engine: Engine) -> Iterator[Connection]:
    """A connection of its own without foreign keys: SQLite alters a table by replacing it, which would cascade."""
    with engine.connect() as connection:
        connection.detach()
        if engine.dialect.name == "sqlite":
            connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
        yield connection
