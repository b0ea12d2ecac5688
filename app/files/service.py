"""What becomes of an upload, and when a file may go."""

from pathlib import PurePath

from sqlalchemy import Engine
from sqlmodel import Session

from app import blobs, quotas
from app.db import read_session
from app.disk import MAKE_SPACE, in_words
from app.errors import Conflict, Detail, DiskFull, InvalidSpec
from app.files import repository
from app.files.schemas import Upload
from app.jobs import stage_runs
from app.jobs.states import Stage
from app.models import File
from app.reserve import free_beside_reserve
from app.settings import Settings
from app.storage import Storage
from app.suggestions import suggest
from app.tenancy import tenant_of

ENDINGS = (".jsonl", ".json", ".parquet", ".csv")
PURPOSE = "fine-tune"


def check_name(filename: str) -> None:
    if PurePath(filename.lower()).suffix not in ENDINGS:
        message = f"{filename!r} is not a data set by its ending; it must be one of {', '.join(ENDINGS)}."
        raise InvalidSpec.of([Detail("file", message)])


def check_room(engine: Engine, settings: Settings, storage: Storage, tenant_id: str, length: str | None) -> None:
    """DiskFull or QuotaExceeded for an upload that says to be larger than what is left, before any of it is read."""
    size, free = int(length or 0), free_beside_reserve(engine, storage.root)
    with read_session(engine, tenant_id) as session:
        quotas.check_storage(session, settings, size)
    if size > free:
        raise DiskFull(f"The upload has {in_words(size)}, and the service's disk {in_words(free)} free. {MAKE_SPACE}.")


def check_upload(fields: dict[str, str], filename: str | None, size: int) -> None:
    """InvalidSpec with everything that is wrong with the form."""
    details = []
    if filename is None:
        details.append(Detail("file", "file is required: the data set's content."))
    elif size == 0:
        details.append(Detail("file", "The file is empty.", "dataset_empty"))
    if fields.get("purpose") != PURPOSE:
        details.append(Detail("purpose", f"purpose is required, and must be {PURPOSE!r}."))
    for name in sorted(fields.keys() - {"purpose"}):
        if name.startswith("expires_after"):
            details.append(Detail(name, "Files that expire are not available in this version.", "not_available"))
        else:
            details.append(Detail(name, f"{name}: there is no such field; {suggest(name, ['file', 'purpose'])}"))
    if details:
        raise InvalidSpec.of(details)


def create(session: Session, settings: Settings, storage: Storage, upload: Upload) -> File:
    """Takes a whole upload into storage and queues its inspection."""
    quotas.check_storage(session, settings, upload.size)
    blobs.keep(session, upload.sha256, upload.size)
    storage.ingest(upload.path, upload.sha256)
    file = File(tenant_id=tenant_of(session), filename=upload.filename, purpose=PURPOSE, blob_sha256=upload.sha256)
    session.add(file)
    session.flush()
    stage_runs.enqueue(session, file=file, stage=Stage.INSPECT)
    return file


def delete(session: Session, file_id: str) -> str:
    """Removes the rows; answers the hash of the content, for `remove_content` after the commit."""
    file = repository.get(session, file_id)
    job_id = repository.find_job_using(session, file_id)
    if job_id is not None:
        raise Conflict(
            f"{job_id} still needs this file. Cancel that job or wait for its end.", param="file_id", code="file_in_use"
        )
    session.delete(file)
    blobs.drop_unused(session, [file.blob_sha256])
    return file.blob_sha256


def remove_content(engine: Engine, storage: Storage, file_id: str, sha256: str) -> None:
    storage.remove_file(file_id)
    blobs.remove_dropped(engine, storage, [sha256])


def check_report(file: File) -> None:
    """InvalidSpec when the file could not be read; its report is then all that the status says. A job's results have none."""
    if file.job_id is not None:
        raise InvalidSpec("This file holds the results of a job; there is no report on it.", param="file_id")
    if file.status == "error":
        raise InvalidSpec(file.status_details or "The file could not be read.", param="file_id", code="dataset_invalid")
