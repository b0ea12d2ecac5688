"""Alembic's folder, a package so that the wheel carries it. `app.migration.migrate` runs it."""
