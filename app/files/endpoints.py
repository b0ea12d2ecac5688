"""/v1/files: in OpenAI's shape, and what OpenAI has not, the report on a file."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Depends, Query, Request, Response

from app.dependencies import Caller, EngineDep, OnceDep, ReadSession, SettingsDep, StorageDep, WriteSession
from app.downloads import PARTS, send_blob
from app.error_handlers import ERROR_CONTENT
from app.files import repository, service, tokenised
from app.files.multipart import Form, receive
from app.files.schemas import DeletedFile, File, Upload
from app.files.tokenised import PreviewOptions, ReportOptions
from app.ids import new_id
from app.jobs import stage_runs
from app.jobs.states import Stage
from app.models import StageRun
from app.pagination import After, Limit, Page, make_page
from app.strictness import OpenAIRoute, StrictRoute

MAX_LIMIT = 10_000

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=OpenAIRoute)
native_router = APIRouter(prefix="/v1/files", tags=["files"], route_class=StrictRoute)

PENDING: dict[int | str, dict[str, Any]] = {
    202: {"description": "A worker has not made it yet."},
    503: {"description": "A worker could not make it now.", "content": ERROR_CONTENT},
    507: {"description": "The server's disk is full.", "content": ERROR_CONTENT},
}
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


async def receive_upload(
    request: Request, engine: EngineDep, settings: SettingsDep, storage: StorageDep, caller: Caller
) -> AsyncIterator[Upload]:
    """The upload in a file of its own, which is gone when the request ends."""
    service.check_room(engine, settings, storage, caller.tenant_id, request.headers.get("content-length"))
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


@router.post("", openapi_extra={"requestBody": UPLOAD_FORM})
def create_file(
    upload: Annotated[Upload, Depends(receive_upload)],
    session: WriteSession,
    settings: SettingsDep,
    storage: StorageDep,
    once: OnceDep,
) -> File:
    """Streams the file to disk; it is visible only when it is whole. A worker then reads it and writes its report."""
    body = f"{upload.sha256} {upload.filename}"
    file_id = once.run(session, body, lambda: service.create(session, settings, storage, upload).id)
    return File.of(repository.get(session, file_id), upload.size)


@router.get("")
def list_files(
    session: ReadSession,
    limit: Limit = 20,
    after: After = None,
    purpose: str | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> Page[File]:
    """Newest first, or oldest first with `order=asc`."""
    limit = min(limit, MAX_LIMIT)
    rows = repository.page(session, limit=limit, after=after, purpose=purpose, newest_first=order == "desc")
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
@router.get("/{file_id}/content", response_class=Response, responses=PARTS)
def get_content(file_id: str, request: Request, session: ReadSession, storage: StorageDep) -> Response:
    row = repository.get(session, file_id)
    return send_blob(request, storage, row.blob_sha256, row.filename)


@native_router.get("/{file_id}/report", responses=PENDING)
def get_report(
    file_id: str,
    session: WriteSession,
    settings: SettingsDep,
    response: Response,
    options: Annotated[ReportOptions, Query()],
) -> dict[str, Any]:
    """What a worker found: rows, format, refused rows with line and reason, duplicates. With `base_model` also what its
    tokenizer and chat template make of them: tokens, the share that is trained, rows that are cut, held-out rows among them."""
    row = repository.get(session, file_id)
    service.check_report(row)
    if options.base_model is not None:
        run = tokenised.find_report(session, settings, row, options)
        found = tokenised.read_result(run, "report")
        if row.report is not None and found is not None:
            return row.report | found
        return answer_later(response, run)
    if row.report is not None:
        return row.report
    return answer_later(response, stage_runs.find_of_file(session, row, Stage.INSPECT))


@native_router.get("/{file_id}/preview", responses=PENDING)
def get_preview(
    file_id: str,
    session: WriteSession,
    settings: SettingsDep,
    response: Response,
    options: Annotated[PreviewOptions, Query()],
) -> dict[str, Any]:
    """One row as the base model would see it: its text, its tokens, which of them are trained, and where it is cut."""
    row = repository.get(session, file_id)
    service.check_report(row)
    run = tokenised.find_preview(session, settings, row, options)
    found = tokenised.read_result(run, "preview")
    return answer_later(response, run) if found is None else found


def answer_later(response: Response, run: StageRun | None) -> dict[str, Any]:
    response.status_code = 202
    response.headers["retry-after"] = "1"
    return tokenised.pending(run)
