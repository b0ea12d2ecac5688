from alembic import command
from sqlalchemy import Engine, inspect, text
from sqlmodel import SQLModel

from app.db import make_engine
from app.migration import connect_for_migration, migrate, migration_config
from app.settings import Settings


def test_the_tables_are_those_of_the_models(engine: Engine) -> None:
    with connect_for_migration(engine) as connection:
        command.check(migration_config(connection))


def test_a_downgrade_leaves_nothing_and_an_upgrade_brings_all_back(engine: Engine) -> None:
    with connect_for_migration(engine) as connection:
        command.downgrade(migration_config(connection), "base")
    assert set(inspect(engine).get_table_names()) == {"alembic_version"}
    migrate(engine)
    assert set(inspect(engine).get_table_names()) == {"alembic_version", *SQLModel.metadata.tables}


def test_foreign_keys_are_on_again_after_a_migration(engine: Engine) -> None:
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA foreign_keys")).scalar_one() == 1


def test_migrating_twice_changes_nothing(settings: Settings) -> None:
    for _ in range(2):
        engine = make_engine(settings.database)
        migrate(engine)
        engine.dispose()
