"""The rows of content in storage, and its removal when no file and no artifact names it any more."""

from collections.abc import Iterable

from sqlalchemy import Engine, delete, exists
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from app.db import write_session
from app.models import Artifact, Blob, File
from app.storage import Storage


def keep(session: Session, sha256: str, size: int) -> None:
    """Makes sure that there is a row. Call it before `Storage.ingest`, in the transaction that names the blob."""
    if session.get(Blob, sha256) is not None:
        return
    try:
        with session.begin_nested():
            session.add(Blob(sha256=sha256, bytes=size))
    except IntegrityError:  # another writer was faster; SQLite has only one
        return


def drop_unused(session: Session, hashes: Iterable[str]) -> None:
    """Deletes the rows of those that nothing names."""
    named = exists().where(col(File.blob_sha256) == col(Blob.sha256)) | exists().where(
        col(Artifact.blob_sha256) == col(Blob.sha256)
    )
    session.flush()
    session.execute(delete(Blob).where(col(Blob.sha256).in_(list(hashes)), ~named))


def remove_dropped(engine: Engine, storage: Storage, hashes: Iterable[str]) -> None:
    """Removes from storage what has no row any more: after the commit that dropped it, in a writing transaction of its own.

    So a rollback loses nothing, and nobody can name the same content between the look and the removal.
    """
    with write_session(engine) as session:
        for sha256 in hashes:
            if session.get(Blob, sha256, with_for_update=True) is None:
                storage.remove_blob(sha256)
