"""Content from storage as an HTTP answer: ranges, conditional requests, and a name to save it under."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import MalformedRangeHeader, RangeNotSatisfiable

from app.artifacts.archive import Archive
from app.error_handlers import ErrorAnswer
from app.storage import Storage

UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "`If-None-Match` names it: the client has it."}}
PARTS: dict[int | str, dict[str, Any]] = UNCHANGED | {
    206: {"description": "The part that `Range` asks for."},
    416: {"model": ErrorAnswer, "description": "The file ends before the part that `Range` asks for."},
}


class BlobResponse(FileResponse):
    """Starlette's, with larger chunks that are read by `CachedFile`, and with our own refusal of a range."""

    chunk_size = 256 << 10

    @asynccontextmanager
    async def _open_file(self) -> AsyncIterator["CachedFile"]:  # type: ignore[override]
        with await run_in_threadpool(open, self.path, "rb", 0) as file:
            yield CachedFile(file.fileno())

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        """None, which is the whole file, for what is no range of bytes: RFC 9110 has it ignored."""
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader:
            return []
        except RangeNotSatisfiable as problem:
            raise HTTPException(416, headers={"content-range": f"bytes */{file_size}"}) from problem


class CachedFile:
    """A file for an event loop. What the kernel has in memory is read at once, and only what has to come from the disk by a
    thread: to wake one costs more than to copy such a chunk."""

    def __init__(self, descriptor: int):
        self._descriptor, self._offset = descriptor, 0

    async def seek(self, offset: int) -> None:
        self._offset = offset

    async def read(self, size: int) -> bytes:
        if is_cached(self._descriptor, self._offset + size - 1):
            await asyncio.sleep(0)  # a fast client shall not keep others waiting
            chunk = os.pread(self._descriptor, size, self._offset)
        else:
            chunk = await run_in_threadpool(os.pread, self._descriptor, size, self._offset)
        self._offset += len(chunk)
        return chunk


def is_cached(descriptor: int, offset: int) -> bool:
    """Whether a byte is in memory: read there, and with it, as a rule, what comes before. False where the file system does not
    tell, and beyond the end."""
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:
        return False


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
