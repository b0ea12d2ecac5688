"""/v1/files: in OpenAI's shape, and what OpenAI has not, the report on a file."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Request, Response

from app.dependencies import EngineDep, ReadSession, StorageDep, WriteSession
from app.downloads import send_blob
from app.error_handlers import refuse_with_400
from app.files import repository, service
from app.files.multipart import Form, receive
from app.files.schemas import DeletedFile, File, Upload
from app.ids import new_id
from app.pagination import After, Limit, Page, make_page
from app.strictness import refuse_idempotency_key, refuse_unknown_query

MAX_LIMIT = 10_000

router = APIRouter(prefix="/v1/files", tags=["files"], dependencies=[Depends(refuse_with_400), Depends(refuse_unknown_query)])
native_router = APIRouter(prefix="/v1/files", tags=["files"], dependencies=[Depends(refuse_unknown_query)])

UPLOAD_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "description": "JSONL, JSON, Parquet or CSV, by its ending.",
                    },
                    "purpose": {"const": service.PURPOSE},
                },
            }
        }
    },
}


async def receive_upload(request: Request, storage: StorageDep) -> AsyncIterator[Upload]:
    """The upload in a file of its own, which is gone when the request ends."""
    path = storage.upload(new_id("upload_"))
    form = Form(request.headers.get("content-type", ""), path, service.check_name)
    try:
        await receive(request.stream(), form)
        sha256 = form.finish()
        service.check_upload(form.fields, form.filename, form.size)
        yield Upload(path, form.filename or "", form.size, sha256)
    finally:
        form.close()
        path.unlink()


@router.post(
    "",
    openapi_extra={"requestBody": UPLOAD_FORM},
    dependencies=[Depends(refuse_idempotency_key)],
)
def create_file(upload: Annotated[Upload, Depends(receive_upload)], session: WriteSession, storage: StorageDep) -> File:
    """Streams the file to disk; it is visible only when it is whole. A worker then reads it and writes its report."""
    return File.of(service.create(session, storage, upload), upload.size)


@router.get("")
def list_files(session: ReadSession, limit: Limit = 20, after: After = None, purpose: str | None = None) -> Page[File]:
    limit = min(limit, MAX_LIMIT)
    rows = repository.page(session, limit=limit, after=after, purpose=purpose)
    return make_page([File.of(row, size) for row, size in rows], limit)


@router.get("/{file_id}")
def get_file(file_id: str, session: ReadSession) -> File:
    row = repository.get(session, file_id)
    return File.of(row, repository.get_bytes(session, row))


@router.delete("/{file_id}")
def delete_file(
    file_id: str, session: WriteSession, engine: EngineDep, storage: StorageDep, background: BackgroundTasks
) -> DeletedFile:
    """409 while a job that has not ended needs it."""
    sha256 = service.delete(session, file_id)
    background.add_task(service.remove_content, engine, storage, file_id, sha256)
    return DeletedFile(id=file_id)


@router.head("/{file_id}/content", include_in_schema=False)
@router.get("/{file_id}/content", response_class=Response)
def get_content(file_id: str, request: Request, session: ReadSession, storage: StorageDep) -> Response:
    row = repository.get(session, file_id)
    return send_blob(request, storage, row.blob_sha256, row.filename)


@native_router.get("/{file_id}/report", responses={202: {"description": "A worker has not read the file yet."}})
def get_report(file_id: str, session: ReadSession, response: Response, base_model: str | None = None) -> dict[str, Any]:
    """What a worker found: rows, format, refused rows with line and reason, duplicates."""
    row = repository.get(session, file_id)
    if base_model is not None:
        raise service.refuse_tokenised("A report for a base model", "base_model")
    service.check_report(row)
    if row.report is not None:
        return row.report
    response.status_code = 202
    response.headers["retry-after"] = "1"
    return {"status": "pending"}


@native_router.get("/{file_id}/preview")
def get_preview(file_id: str, base_model: str | None = None, row: int = 0) -> dict[str, Any]:
    """Not available in this version."""
    raise service.refuse_tokenised("The preview of a row", "base_model")
