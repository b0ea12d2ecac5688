"""Reads a multipart upload as it arrives: the file goes straight to its place in storage and is hashed on the way."""

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from app.errors import Detail, InvalidRequest, InvalidSpec, TooLarge

WRITE_BYTES = 1 << 20
MAX_FIELD_BYTES = 10_000
MAX_FIELDS = 20


class Form:
    """The parser's state: plain fields in `fields`, and the one file part in the file at `path`.

    `check_name` may refuse the file by its name, before its content arrives.
    """

    def __init__(self, content_type: str, path: Path, check_name: Callable[[str], None]):
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise InvalidRequest("Send the file as multipart/form-data with the fields file and purpose.")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.size = 0
        self._check_name = check_name
        self._file = path.open("xb")
        self._hash = hashlib.sha256()
        self._name = ""
        self._in_file = False
        self._header = [b"", b""]
        self._disposition = b""
        self._value = b""
        self._ended = False
        handlers = (
            "part_begin",
            "part_data",
            "part_end",
            "header_field",
            "header_value",
            "header_end",
            "headers_finished",
            "end",
        )
        callbacks: Any = {f"on_{name}": getattr(self, f"_{name}") for name in handlers}
        self._parser = MultipartParser(options[b"boundary"], callbacks)

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as problem:
            raise InvalidRequest(f"The multipart body is malformed: {problem}") from problem

    def finish(self) -> str:
        """The file's SHA-256, once its content is safe on the disk."""
        if not self._ended:
            raise InvalidRequest("The multipart body ends before its last boundary.")
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._hash.hexdigest()

    def close(self) -> None:
        with suppress(OSError):  # a full disk does not take what is still buffered
            self._file.close()

    def _part_begin(self) -> None:
        self._disposition, self._value = b"", b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = [b"", b""]

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise InvalidRequest("A part of the multipart body has no name.")
        self._name = options[b"name"].decode("utf-8", "replace")
        self._in_file = b"filename" in options
        if self._name in self.fields or (self._name == "file" and self.filename is not None):
            raise InvalidSpec.of([Detail(self._name, f"{self._name} is given more than once.")])
        if self._in_file:
            if self._name != "file":
                raise InvalidSpec.of([Detail(self._name, f"{self._name} is not a field for a file; send it as file.")])
            self.filename = clean_name(options[b"filename"].decode("utf-8", "replace"))
            self._check_name(self.filename)
        elif len(self.fields) == MAX_FIELDS:
            raise TooLarge(f"The form has more than {MAX_FIELDS} fields; file and purpose are enough.", param=self._name[:40])

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._in_file:
            self._file.write(piece)
            self._hash.update(piece)
            self.size += len(piece)
        elif len(self._value) + len(piece) > MAX_FIELD_BYTES:
            raise TooLarge(f"The field {self._name[:40]} is longer than {MAX_FIELD_BYTES} bytes.", param=self._name[:40])
        else:
            self._value += piece

    def _part_end(self) -> None:
        if not self._in_file:
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._ended = True


def clean_name(filename: str) -> str:
    """The last part of a path, without control characters, at most 255 characters with its ending kept."""
    name = "".join(letter for letter in filename.replace("\\", "/").rsplit("/", 1)[-1] if letter.isprintable())
    return name[-255:]


async def receive(stream: AsyncIterator[bytes], form: Form) -> None:
    """Parses and writes in a thread, about a megabyte at a time."""
    pieces: list[bytes] = []
    async for piece in stream:
        pieces.append(piece)
        if sum(map(len, pieces)) >= WRITE_BYTES:
            await run_in_threadpool(form.feed, b"".join(pieces))
            pieces.clear()
    await run_in_threadpool(form.feed, b"".join(pieces))
