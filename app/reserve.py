"""A reserve of room for the database: a file beside it that makes way for a transaction on a full disk.

So a job that filled the disk can be failed, and a job can be deleted to make room, although SQLite needs room for either. The
reaper makes the file again when there is room.
"""

import os
from pathlib import Path

from sqlalchemy import Engine

from app.disk import ALMOST_NOTHING, free_bytes

RESERVE_BYTES = 16 << 20


def reserve_of(engine: Engine) -> Path | None:
    """Where the reserve of a database lies; only SQLite in a file needs one."""
    name = engine.url.database
    return Path(name).parent / "reserve" if engine.dialect.name == "sqlite" and name else None


def keep_reserve(engine: Engine) -> None:
    """Makes the reserve again, of bytes that no file system can leave out, once there is room for it and more."""
    path = reserve_of(engine)
    if path is None or path.exists() or free_bytes(path.parent) < 4 * RESERVE_BYTES:
        return
    part = path.with_suffix(".part")
    part.write_bytes(os.urandom(RESERVE_BYTES))
    part.replace(path)


def free_beside_reserve(engine: Engine, place: Path) -> int:
    """What is free at `place` for all but the database: room that the reserve gave up is still its own."""
    path, free = reserve_of(engine), free_bytes(place)
    if path is None or path.exists() or path.parent.stat().st_dev != place.stat().st_dev:
        return free
    return max(0, free - RESERVE_BYTES)


def give_up_reserve(path: Path) -> None:
    """For a writer that finds almost nothing left."""
    if free_bytes(path.parent) < ALMOST_NOTHING:
        path.unlink(missing_ok=True)
