"""Reads a Parquet file row by row. Pages are compressed, and a text may be stored once for many rows, so a small file can stand
for any amount of memory: its footer is looked at first, and what rows would become is reckoned before they are unpacked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.jobs.states import FailureCode
from worker.data.rows import Refusal, Row, RowRefused
from worker.stages import StageFailure

BATCH_ROWS = 1024
VALUE_BYTES = 64
"""What a value takes as an object of Python, about, beside its text."""
MAX_VALUES = 1 << 27
"""Of one column in a row group."""
MAX_RATIO = 1000
"""By which a column of at least LARGE_BYTES may have been compressed; texts reach 50."""
LARGE_BYTES = 256 << 20
MAX_UNPACKED_BYTES = 64 << 30
"""Of all rows together."""
SMALLER = "Write the file with smaller row groups, or upload it as JSONL."


def read_parquet(path: Path, max_row_bytes: int) -> Iterator[Row | Refusal]:
    """StageFailure dataset_invalid for a file that is damaged, or would take too much to read."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            check_footer(file.metadata)
            schema, leaves = file.schema_arrow, [file.schema.column(n) for n in range(file.metadata.num_columns)]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        number = 0
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            for batch in check_total(read_batches(file)):
                for fields in unpack(batch, schema, max_row_bytes):
                    number += 1
                    yield fields.at(number) if isinstance(fields, RowRefused) else Row(number, fields)
    except (pyarrow.ArrowException, OSError) as problem:
        raise StageFailure(FailureCode.DATASET_INVALID, f"The Parquet file is damaged: {problem}") from problem


def read_batches(file: Any) -> Iterator[Any]:
    """None reaches over two row groups, which have dictionaries of their own: Arrow cannot join those inside of lists."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group])


def check_total(batches: Iterator[Any]) -> Iterator[Any]:
    total = 0
    for batch in batches:
        total += sum(map(weigh, batch.columns))
        if total > MAX_UNPACKED_BYTES:
            message = f"The rows of the Parquet file take more than {MAX_UNPACKED_BYTES:,} bytes when they are unpacked."
            raise StageFailure(FailureCode.DATASET_INVALID, message, hint="Upload it in parts.")
        yield batch


def check_footer(metadata: Any) -> None:
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.num_values > MAX_VALUES:
                message = f"A row group of the Parquet file has {column.num_values:,} values of {column.path_in_schema}."
                raise StageFailure(FailureCode.DATASET_INVALID, message, hint=SMALLER)
            unpacked = column.total_uncompressed_size
            if unpacked > LARGE_BYTES and unpacked > MAX_RATIO * column.total_compressed_size:
                message = f"{column.path_in_schema} of the Parquet file is {column.total_compressed_size:,} bytes that unpack"
                raise StageFailure(FailureCode.DATASET_INVALID, f"{message} to {unpacked:,}.", hint=SMALLER)


def unpack(batch: Any, schema: Any, max_row_bytes: int) -> Iterator[dict[str, Any] | RowRefused]:
    """All rows at once, or, where that is too much or one of them cannot be read, each half for itself."""
    import pyarrow

    refusal = RowRefused("too_long", f"The row is longer than {max_row_bytes} bytes.")
    if sum(map(weigh, batch.columns)) <= max_row_bytes:
        try:
            rows = batch.cast(schema).to_pylist()
        except (ValueError, OverflowError) as problem:
            refusal = RowRefused("invalid_text", f"The row cannot be read: {problem}.")
        else:
            yield from rows
            return
    if batch.num_rows == 1:
        yield refusal
        return
    half = batch.num_rows // 2
    for rows in (range(half), range(half, batch.num_rows)):
        part = batch.take(pyarrow.array(rows))  # a slice would keep, and `cast` unpack, what the other rows hold
        yield from unpack(part, schema, max_row_bytes)


def weigh(array: Any) -> int:
    """About the bytes that an Arrow array takes as objects of Python."""
    import pyarrow
    from pyarrow import compute, types

    if types.is_dictionary(array.type):
        lengths = compute.binary_length(array.dictionary).cast(pyarrow.int64())
        text = compute.sum(lengths.take(array.indices)).as_py() or 0
        return VALUE_BYTES * len(array) + text
    if types.is_struct(array.type):
        return VALUE_BYTES * len(array) + sum(map(weigh, array.flatten()))
    if types.is_nested(array.type):
        return VALUE_BYTES * len(array) + weigh(array.flatten())
    return VALUE_BYTES * len(array) + array.nbytes
