"""Alembic's folder, a package so that the wheel carries it. `app.db.migrate` runs it."""
