"""The rows of content in storage, and its removal when no file and no artifact names it any more."""

import hashlib
import time
from collections.abc import Iterable
from contextlib import suppress

from sqlalchemy import ColumnElement, Engine, delete, exists
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from app.db import write_session
from app.ids import new_id
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


def keep_content(session: Session, storage: Storage, content: bytes) -> str:
    """Puts what was made in memory into storage, in the transaction that will name it; answers its SHA-256."""
    sha256 = hashlib.sha256(content).hexdigest()
    keep(session, sha256, len(content))
    path = storage.upload(new_id("made_"))
    try:
        path.write_bytes(content)
        storage.ingest(path, sha256)
    finally:
        path.unlink(missing_ok=True)
    return sha256


def drop_unused(session: Session, hashes: Iterable[str]) -> None:
    """Deletes the rows of those that nothing names."""
    session.flush()
    session.execute(delete(Blob).where(col(Blob.sha256).in_(list(hashes)), ~is_named()))


def drop_all_unused(session: Session) -> list[str]:
    """Deletes every row that nothing names; answers the hashes, for `remove_dropped` after the commit."""
    return list(session.scalars(delete(Blob).where(~is_named()).returning(col(Blob.sha256))))


def is_named() -> ColumnElement[bool]:
    in_file = exists().where(col(File.blob_sha256) == col(Blob.sha256))
    return in_file | exists().where(col(Artifact.blob_sha256) == col(Blob.sha256))


def find_strays(session: Session, storage: Storage, older_than_seconds: float) -> list[str]:
    """Content without a row that has been there for a while: younger content may belong to a transaction that is not over."""
    latest, old = time.time() - older_than_seconds, []
    for path in storage.blobs():
        with suppress(FileNotFoundError):
            if path.stat().st_ctime < latest:
                old.append(path.name)
    known = set(session.scalars(select(Blob.sha256)))
    return [sha256 for sha256 in old if sha256 not in known]


def remove_dropped(engine: Engine, storage: Storage, hashes: Iterable[str]) -> None:
    """Removes from storage what has no row any more: after the commit that dropped it, in a writing transaction of its own.

    So a rollback loses nothing, and nobody can name the same content between the look and the removal.
    """
    with write_session(engine) as session:
        for sha256 in hashes:
            if session.get(Blob, sha256, with_for_update=True) is None:
                storage.remove_blob(sha256)
