"""Reads an uploaded file row by row: JSONL, JSON, Parquet, CSV. A row that cannot be read is a Refusal, never a crash."""

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from app.jobs.states import FailureCode
from worker.data.json_arrays import read_elements
from worker.data.parquet import read_parquet
from worker.data.rows import Refusal, Row, RowRefused
from worker.stages import StageFailure

MAX_ROW_BYTES = 64 << 20
"""A longer row is refused: no conversation is, and one line must not fill the memory."""

MAX_ROWS = 20_000_000
MAX_OBJECT_BYTES = 256 << 20
"""Of a JSON file that is an object around its rows, which is read at once."""
SNIFFED_BYTES = 1 << 16
csv.field_size_limit(MAX_ROW_BYTES)

ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}


def read_rows(path: Path, filename: str | None) -> Iterator[Row | Refusal]:
    """The rows of the file in order. StageFailure dataset_invalid if it is in none of the containers, breaks off, or has more
    than MAX_ROWS."""
    return count_rows(READERS[container_of(path, filename)](path))


def count_rows(rows: Iterator[Row | Refusal]) -> Iterator[Row | Refusal]:
    yield from islice(rows, MAX_ROWS)
    if next(rows, None) is not None:
        message = f"The file has more than {MAX_ROWS:,} rows."
        raise StageFailure(FailureCode.DATASET_INVALID, message, hint="Upload it in parts.")


def container_of(path: Path, filename: str | None) -> str:
    """`jsonl`, `json`, `parquet` or `csv`: by the uploaded name's ending, and by the content where that says nothing.

    `.json` says nothing: many such files hold one object a line.
    """
    with path.open("rb") as file:
        start = file.read(SNIFFED_BYTES)
    if not start.strip():
        raise StageFailure(FailureCode.DATASET_EMPTY, "The file is empty.", hint="Upload a file with at least one row.")
    container = ENDINGS.get(Path(filename or "").suffix.lower()) or sniff(start)
    if container is None or (container == "parquet") != start.startswith(b"PAR1"):
        raise not_data(filename)
    if container != "parquet" and b"\x00" in start:
        raise not_data(filename)
    return container


def sniff(start: bytes) -> str | None:
    if start.startswith(b"PAR1"):
        return "parquet"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        return "json"
    first, _, rest = text.partition(b"\n")
    if text.startswith(b"{"):
        return "jsonl" if is_object(first) and (rest.strip() or len(start) < SNIFFED_BYTES) else "json"
    return "csv" if b"," in first or b"\t" in first or b";" in first else None


def is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def not_data(filename: str | None) -> StageFailure:
    message = f"{filename or 'The file'} is not JSONL, JSON, Parquet or CSV."
    return StageFailure(
        FailureCode.DATASET_INVALID, message, hint="Upload one JSON object a line, or one of the other formats."
    )


def read_jsonl(path: Path) -> Iterator[Row | Refusal]:
    with path.open("rb") as file:
        line_number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            line_number += 1
            if len(line) > MAX_ROW_BYTES:
                yield Refusal(line_number, "too_long", f"The line is longer than {MAX_ROW_BYTES} bytes.")
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_ROW_BYTES)
            elif line.strip():
                yield read_json_row(line_number, line.removeprefix(b"\xef\xbb\xbf") if line_number == 1 else line)


def read_json_row(line_number: int, line: bytes) -> Row | Refusal:
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        return Refusal(line_number, "invalid_text", "The line is not UTF-8.")
    except json.JSONDecodeError as problem:
        return Refusal(line_number, "invalid_json", f"{problem.msg} at column {problem.colno}.")
    except (ValueError, RecursionError):
        return Refusal(line_number, "invalid_json", "The JSON is nested too deep or has too long a number.")
    return as_row(line_number, value)


def as_row(number: int, value: Any) -> Row | Refusal:
    if isinstance(value, dict):
        return Row(number, value)
    return Refusal(number, "wrong_type", f"The row is a JSON {JSON_TYPES[type(value)]}, not an object.")


JSON_TYPES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def read_json(path: Path) -> Iterator[Row | Refusal]:
    """An array of rows, read piece by piece, or an object that holds one array."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        first = file.read(1)
        while first.isspace():
            first = file.read(1)
        if first == "[":
            for number, element in enumerate(read_elements(file, MAX_ROW_BYTES), 1):
                yield element.at(number) if isinstance(element, RowRefused) else as_row(number, element)
            return
    for number, element in enumerate(only_list(path), 1):
        yield as_row(number, element)


def only_list(path: Path) -> list:
    if path.stat().st_size > MAX_OBJECT_BYTES:
        message = f"A JSON file of more than {MAX_OBJECT_BYTES:,} bytes must be an array of rows."
        raise StageFailure(FailureCode.DATASET_INVALID, message, hint="Put the rows in one array, or one on each line.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise StageFailure(FailureCode.DATASET_INVALID, f"The file is not valid JSON: {problem}.") from problem
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else []
    if len(lists) != 1:
        message = "The JSON file is neither an array of rows nor an object that holds exactly one array."
        raise StageFailure(FailureCode.DATASET_INVALID, message, hint="Put the rows in one array.")
    return lists[0]


def read_csv(path: Path) -> Iterator[Row | Refusal]:
    """The first record names the columns. The separator is whichever of comma, tab and semicolon the header has most of."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        header = file.readline(MAX_ROW_BYTES)
        file.seek(0)
        reader = csv.reader(lines_of(file), delimiter=max(",\t;", key=header.count))
        try:
            columns = next(reader, [])
        except csv.Error as problem:
            raise StageFailure(FailureCode.DATASET_INVALID, f"The CSV header cannot be read: {problem}.") from problem
        line = reader.line_num + 1
        while True:
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as problem:
                yield Refusal(line, "wrong_columns", f"The CSV record cannot be read: {problem}.")
            else:
                if len(record) == len(columns):
                    yield Row(line, dict(zip(columns, record, strict=True)))
                elif record:
                    yield Refusal(line, "wrong_columns", f"The record has {len(record)} fields, the header {len(columns)}.")
            line = reader.line_num + 1


def lines_of(file: TextIO) -> Iterator[str]:
    while line := file.readline(MAX_ROW_BYTES + 1):
        if len(line) > MAX_ROW_BYTES:
            message = f"A line of the CSV file is longer than {MAX_ROW_BYTES:,} characters."
            raise StageFailure(FailureCode.DATASET_INVALID, message, hint="Check where its records and quotes end.")
        yield line


READERS: dict[str, Callable[[Path], Iterator[Row | Refusal]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "parquet": lambda path: read_parquet(path, MAX_ROW_BYTES),
    "csv": read_csv,
}
