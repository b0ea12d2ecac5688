"""Removes what nobody needs and nobody else removes: what was left when its remover died, or had no remover.

Each step finds what it removes by looking at the rows, in transactions of its own, so it is safe beside uploads,
publications and other sweeps. Folders come after their row, and an upload is written to while it lives.
"""

import logging
import time
from contextlib import suppress
from datetime import timedelta

from sqlalchemy import Engine

from app import blobs, idempotency
from app.db import read_session, write_session
from app.jobs.tidying import tidy
from app.models import File, Job, now
from app.storage import Storage
from app.webhooks import repository as webhooks

log = logging.getLogger(__name__)

SAFE_AGE_SECONDS = 3600.0
"""Content that came in, and uploads that grew, within this time are in use."""
DELIVERIES_KEPT_DAYS = 30


def sweep(engine: Engine, storage: Storage) -> None:
    remove_stale_uploads(storage)
    sweep_folders(engine, storage)
    sweep_blobs(engine, storage)
    idempotency.forget_old(engine)
    sweep_deliveries(engine)


def remove_stale_uploads(storage: Storage) -> None:
    """Of requests whose server died."""
    latest = time.time() - SAFE_AGE_SECONDS
    for path in storage.uploads():
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < latest:
                log.info("removing the stale upload %s", path.name)
                path.unlink()


def sweep_folders(engine: Engine, storage: Storage) -> None:
    """Tidies the jobs and files that there are, and removes the folders of those that were deleted."""
    for folder in list(storage.job_folders()):
        with read_session(engine) as session:
            if job := session.get(Job, folder.name):
                tidy(session, storage, job)
            else:
                log.info("removing the folder of the deleted job %s", folder.name)
                storage.remove_job(folder.name)
    for folder in list(storage.file_folders()):
        with read_session(engine) as session:
            if file := session.get(File, folder.name):
                tidy(session, storage, file)
            else:
                log.info("removing the folder of the deleted file %s", folder.name)
                storage.remove_file(folder.name)


def sweep_blobs(engine: Engine, storage: Storage) -> None:
    """Content that a rerun has replaced, and content whose row went without it."""
    with write_session(engine) as session:
        dropped = blobs.drop_all_unused(session)
    with read_session(engine) as session:
        strays = blobs.find_strays(session, storage, SAFE_AGE_SECONDS)
    if dropped or strays:
        log.info("removing %d blobs that nothing names", len({*dropped, *strays}))
        blobs.remove_dropped(engine, storage, {*dropped, *strays})


def sweep_deliveries(engine: Engine) -> None:
    """The log of webhooks that were sent or given up long ago."""
    with write_session(engine) as session:
        webhooks.forget_deliveries(session, now() - timedelta(days=DELIVERIES_KEPT_DAYS))
