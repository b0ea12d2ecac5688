import csv
import io
import json
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.jobs.states import FailureCode
from worker.data import json_arrays, parquet, readers
from worker.data.readers import read_rows
from worker.data.rows import Refusal, Row
from worker.stages import StageFailure


@pytest.fixture
def read(tmp_path):
    """Reads content as an uploaded file: a blob without an ending, and the name that it was uploaded under."""

    def read_content(content, filename=None):
        path = tmp_path / "blob"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_rows(path, filename))

    return read_content


def brief(items):
    return [(item.line, item.code) if isinstance(item, Refusal) else tuple(item) for item in items]


def test_jsonl_rows_have_their_lines_and_broken_ones_are_refused(read):
    content = '\ufeff{"a": 1}\n\n{"a": \n[1]\n{"a": "é"}'.encode() + b'\n{"a": "\xff"}\n' + b"[" * 100_000 + b'\n{"a": 2}'
    assert brief(read(content, "x.jsonl")) == [
        (1, {"a": 1}),
        (3, "invalid_json"),
        (4, "wrong_type"),
        (5, {"a": "é"}),
        (6, "invalid_text"),
        (7, "invalid_json"),
        (8, {"a": 2}),
    ]


def test_a_line_that_is_too_long_is_refused_without_reading_it_whole(read, monkeypatch):
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 20)
    assert brief(read('{"a": 1}\n' + '"' + "x" * 100 + '"\n{"a": 2}\n', "x.jsonl")) == [
        (1, {"a": 1}),
        (2, "too_long"),
        (3, {"a": 2}),
    ]


@pytest.mark.parametrize("filename", ["x.json", "x", None, "X.JSON"])
def test_json_arrays_are_read_element_by_element(read, filename):
    rows = [{"a": "]},{[" * 5, "b": [1, {"c": None}]}, {"a": 2}]
    for indent in (None, 2):
        assert brief(read(json.dumps(rows, indent=indent), filename)) == [(1, rows[0]), (2, rows[1])]


def test_a_broken_array_gives_what_comes_before_the_break(read):
    assert brief(read('[{"a": 1}, 7, {"a": 2}, {"a": oops}, {"a": 3}]', "x.json")) == [
        (1, {"a": 1}),
        (2, "wrong_type"),
        (3, {"a": 2}),
        (4, "invalid_json"),
    ]
    assert brief(read('[{"a": 1}, {"a": ', "x.json")) == [(1, {"a": 1}), (2, "invalid_json")]


OBJECTS = st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=9), st.integers(), st.none()))


@given(st.lists(st.one_of(OBJECTS, st.integers())), st.integers(1, 40))
def test_arrays_are_read_the_same_whatever_the_pieces(tmp_path_factory, elements, piece):
    path = tmp_path_factory.getbasetemp() / "pieces"
    path.write_text(json.dumps(elements, ensure_ascii=False, indent=1), encoding="utf-8")
    expected = [(n, element if isinstance(element, dict) else "wrong_type") for n, element in enumerate(elements, 1)]
    size, json_arrays.CHUNK_CHARACTERS = json_arrays.CHUNK_CHARACTERS, piece
    try:
        assert brief(read_rows(path, "x.json")) == expected
    finally:
        json_arrays.CHUNK_CHARACTERS = size


def test_an_object_with_one_array_is_read(read):
    assert brief(read('{"version": 1,\n "data": [{"a": 1}, {"a": 2}]}', "x.json")) == [(1, {"a": 1}), (2, {"a": 2})]
    with pytest.raises(StageFailure, match="exactly one array"):
        read('{"a": [1],\n "b": [2]}', "x.json")


@pytest.mark.parametrize("filename", ["x.json", "x", "x.bin", "x.jsonl"])
def test_objects_line_by_line_are_known_under_any_name(read, filename):
    assert brief(read('{"a": 1}\n{"a": 2}\n', filename)) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_records_have_the_line_they_start_on(read, separator, tmp_path):
    with (tmp_path / "made").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([["a", "b"], ["1\n2", "x, y; z\t"], ["3", '"'], ["only one"], ["4", "5"]])
    assert brief(read((tmp_path / "made").read_bytes(), "x.csv")) == [
        (2, {"a": "1\n2", "b": "x, y; z\t"}),
        (4, {"a": "3", "b": '"'}),
        (5, "wrong_columns"),
        (6, {"a": "4", "b": "5"}),
    ]


def test_parquet_is_read_in_batches(read, tmp_path):
    rows = [{"conversations": [{"from": "human", "value": str(number)}]} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "made.parquet")
    content = (tmp_path / "made.parquet").read_bytes()
    for filename in ("x.parquet", "x"):
        assert [(item.line, item.fields) for item in read(content, filename)] == list(enumerate(rows, 1))
    with pytest.raises(StageFailure, match="damaged") as failure:
        read(content[: len(content) // 2], "x.parquet")
    assert failure.value.code == FailureCode.DATASET_INVALID


@pytest.fixture
def write(tmp_path):
    """Reads what a table is as a Parquet file."""

    def write_table(table, **options):
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", dictionary_pagesize_limit=1 << 30, **options)
        (tmp_path / "blob").write_bytes(sink.getvalue())
        return read_rows(tmp_path / "blob", "x.parquet")

    return write_table


def test_a_text_that_parquet_holds_once_for_many_rows_is_not_unpacked_into_each(write):
    """In memory the rows are a hundred gigabytes; the file has a few thousand bytes."""
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 2000 + [1], pa.int32()), pa.array(["x" * 60_000_000, "y"]))
    rows = write(pa.table({"n": range(2001), "turns": pa.ListArray.from_arrays(range(2002), once)}), store_schema=False)
    for _ in range(3):
        assert next(rows).fields["turns"] == ["x" * 60_000_000]


def test_rows_of_parquet_are_weighed_before_they_are_unpacked(write, monkeypatch):
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 10_000)
    table = [{"a": "b", "turns": [{"n": 1}]}] * 5 + [{"a": "b", "turns": [{"n": 1}] * 500}, {"a": "x" * 9000, "turns": None}]
    rows = brief(write(pa.Table.from_pylist([*table, *table[:2]])))
    assert rows == [*((n, table[0]) for n in range(1, 6)), (6, "too_long"), (7, table[6]), (8, table[0]), (9, table[0])]


def test_text_of_parquet_that_is_no_unicode_is_refused_by_its_row(write):
    texts = pa.array([b"a", b"\xff", b"b"]).view(pa.string())
    assert brief(write(pa.table({"a": texts}))) == [(1, {"a": "a"}), (2, "invalid_text"), (3, {"a": "b"})]


def test_batches_of_parquet_do_not_reach_over_row_groups(write):
    rows = [{"turns": [{"role": "user", "text": f"{n} " * 50}], "more": None if n % 3 else ["x"]} for n in range(2500)]
    assert [row.fields for row in write(pa.Table.from_pylist(rows), row_group_size=700)] == rows


def test_a_csv_field_may_be_as_long_as_a_row(read):
    text = "a line\n" * 50_000
    assert brief(read(f'a,b\n1,"{text}"\n', "x.csv")) == [(2, {"a": "1", "b": text})]


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_UNPACKED_BYTES", 99, "when they are unpacked"),
        ("MAX_VALUES", 99, "has 100 values of n"),
        ("LARGE_BYTES", 1, "bytes that unpack to"),
        ("MAX_RATIO", 0, None),
    ],
)
def test_the_footer_of_parquet_tells_of_too_much(write, monkeypatch, limit, value, message):
    monkeypatch.setattr(parquet, limit, value)
    monkeypatch.setattr(parquet, "MAX_RATIO", 0)
    table = pa.table({"n": [1] * 100})
    if message is None:
        assert len(list(write(table))) == 100
    else:
        with pytest.raises(StageFailure, match=message) as failure:
            list(write(table))
        assert failure.value.code == FailureCode.DATASET_INVALID


@pytest.mark.parametrize(
    ("limit", "value", "content", "filename"),
    [
        ("MAX_ROWS", 2, "{}\n" * 3, "x.jsonl"),
        ("MAX_OBJECT_BYTES", 9, '{\n"rows": [{}]}', "x.json"),
        ("MAX_ROW_BYTES", 9, "a,b\nc," + "d" * 99, "x.csv"),
    ],
)
def test_what_is_too_much_at_once_is_refused_whole(read, monkeypatch, limit, value, content, filename):
    monkeypatch.setattr(readers, limit, value)
    with pytest.raises(StageFailure, match=r"more|longer") as failure:
        read(content, filename)
    assert failure.value.code == FailureCode.DATASET_INVALID


@pytest.mark.parametrize(
    ("content", "filename", "code"),
    [
        (b"", "x.jsonl", FailureCode.DATASET_EMPTY),
        (b" \n\n", "x.jsonl", FailureCode.DATASET_EMPTY),
        (b"\x7fELF\x00\x01", "x.jsonl", FailureCode.DATASET_INVALID),
        (b"just some words\nand more", "x.txt", FailureCode.DATASET_INVALID),
        (b"no parquet at all", "x.parquet", FailureCode.DATASET_INVALID),
        (b"PAR1....", "x.csv", FailureCode.DATASET_INVALID),
        (b"\x89PNG\r\n\x1a\n\x00\x00", None, FailureCode.DATASET_INVALID),
    ],
)
def test_files_that_are_no_data_are_refused_whole(read, content, filename, code):
    with pytest.raises(StageFailure) as failure:
        read(content, filename)
    assert failure.value.code == code


@example(b"\xef\xbb\xbf", "x.csv")
@example(b"\x00,a\n", "x.csv")
@example(b'"', "x.csv")
@given(st.binary(max_size=300), st.sampled_from(["x.jsonl", "x.json", "x.csv", "x.parquet", "x", None]))
def test_no_bytes_crash_a_reader(tmp_path_factory, content, filename):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    with suppress(StageFailure):
        assert all(isinstance(item, Row | Refusal) for item in read_rows(path, filename))
