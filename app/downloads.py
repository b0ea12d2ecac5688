"""Content from storage as an HTTP answer: ranges, conditional requests, and a name to save it under."""

from fastapi import Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from app.artifacts.archive import Archive
from app.storage import Storage


class BlobResponse(FileResponse):
    chunk_size = 1 << 20
    """Sixteen times Starlette's: several times the throughput."""


def send_blob(request: Request, storage: Storage, sha256: str, filename: str) -> Response:
    """The whole blob, the range that was asked for, or 304 to a client that has it."""
    headers = {"etag": f'"{sha256}"', "x-content-type-options": "nosniff", "cache-control": "private, no-cache"}
    if has_current(request.headers.get("if-none-match", ""), headers["etag"]):
        return Response(status_code=304, headers=headers)
    return BlobResponse(storage.blob(sha256), filename=filename, media_type="application/octet-stream", headers=headers)


def send_archive(request: Request, storage: Storage, archive: Archive, filename: str) -> Response:
    """The whole archive, or 304 to a client that has it. No ranges: it is made anew for each."""
    headers = {
        "etag": archive.etag,
        "content-length": str(archive.size),
        "content-disposition": f'attachment; filename="{filename}"',
        "cache-control": "private, no-cache",
        "accept-ranges": "none",
    }
    if has_current(request.headers.get("if-none-match", ""), archive.etag):
        return Response(status_code=304, headers={"etag": archive.etag, "cache-control": headers["cache-control"]})
    if request.method == "HEAD":
        return Response(media_type="application/x-tar", headers=headers)
    return StreamingResponse(archive.chunks(storage), media_type="application/x-tar", headers=headers)


def has_current(if_none_match: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or "*" in tags
