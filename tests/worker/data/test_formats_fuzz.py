"""Whatever JSON a row holds, it becomes a sample or a counted refusal."""

import json
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.data.formats import FORMATS, digest_of, texts_of
from worker.data.formats.turns import Preference
from worker.data.readers import read_rows
from worker.data.rows import CODES, Refusal, Row
from worker.data.surveys import Usable, normalise, survey
from worker.stages import StageFailure

ROLES = ["system", "user", "human", "assistant", "gpt", "model", "tool", "observation", "function_call", "Robot", ""]
TEXTS = st.sampled_from(["Why?", "So.", "", " ", "\ud800", '{"name": "f", "arguments": {"x": 1}}', '[{"from": "gpt"}]', "null"])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "type", "text", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
CALL = st.fixed_dictionaries(
    {}, optional={"id": JUNK, "function": st.fixed_dictionaries({}, optional={"name": TEXTS, "arguments": JUNK}) | JUNK}
)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(ROLES) | JUNK,
        "from": st.sampled_from(ROLES) | JUNK,
        "content": TEXTS | JUNK,
        "value": TEXTS | JUNK,
        "weight": st.sampled_from([0, 1, None]) | JUNK,
        "tool_calls": st.lists(CALL, max_size=2) | JUNK,
        "function_call": CALL | JUNK,
        "reasoning_content": JUNK,
        "name": JUNK,
    },
)
GOOD_TURNS = st.sampled_from(
    [
        [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
        [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}],
        [{"role": "user", "content": "Why?"}],
        [{"role": "assistant", "content": "No."}],
    ]
)
TURNS = GOOD_TURNS | st.lists(TURN, max_size=4) | JUNK
NAMES = [
    *("conversations", "messages", "texts", "prompt", "completion", "chosen", "rejected", "input", "preferred_output"),
    *("non_preferred_output", "instruction", "question", "response", "answer", "output", "text", "system", "context", "tools"),
]
FIELDS = st.dictionaries(st.sampled_from(NAMES), TURNS | TEXTS | st.fixed_dictionaries({"messages": TURNS}), max_size=4)
ROWS = st.lists(FIELDS | JUNK, min_size=1, max_size=12)


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(FIELDS, max_size=8))
def test_every_row_is_a_sample_or_a_refusal(form, rows):
    results = list(normalise([Row(number, fields) for number, fields in enumerate(rows, 1)], form))
    assert [item.line for item in results] == list(range(1, len(rows) + 1))
    for item in results:
        if isinstance(item, Refusal):
            assert item.code in CODES
            item.reason.encode()
            continue
        assert len(digest_of(item.sample)) == 16
        assert all(isinstance(text, str) for text in texts_of(item.sample))
        sides = item.sample[:2] if isinstance(item.sample, Preference) else [item.sample]
        for side in sides:
            if not isinstance(side, str):
                json.dumps([side.turns, side.tools]).encode()
                assert side.turns[-1]["role"] == "assistant"
                assert any(turn["role"] == "assistant" and at not in side.untrained for at, turn in enumerate(side.turns))


@settings(max_examples=40, deadline=None)
@given(rows=ROWS)
def test_no_row_of_a_file_is_lost_uncounted(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        found = survey(read_rows(path, path.name), form="auto", seed=0)
    except StageFailure as failure:
        assert failure.code == "dataset_invalid"
        return
    assert found.rows == len(rows) == found.usable + found.refused
    assert found.refused == sum(found.refused_by_code.values())
    usable = [item for item in normalise(read_rows(path, path.name), found.form) if isinstance(item, Usable)]
    assert len(usable) == found.usable == len(found.turns) == len(found.keys())


def test_deeply_nested_rows_are_refused():
    deep = "x"
    for _ in range(3000):
        deep = [deep]
    tools = [{"name": "f", "parameters": {"deep": deep}}]
    good = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    [refused] = normalise([Row(1, {"messages": good, "tools": tools})], "messages")
    assert (refused.line, refused.code) == (1, "invalid_json")


def test_keys_that_parquet_adds_to_every_tool_are_taken_out(tmp_path):
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    tools = [{"name": "f", "x": {"type": "string"}}, {"name": "g", "y": {"type": "integer"}}]
    table = pa.Table.from_pylist([{"messages": turns, "tools": tools}])
    assert "'y': None" in str(table.to_pylist())
    buffer = BytesIO()
    pq.write_table(table, buffer)
    (tmp_path / "rows.parquet").write_bytes(buffer.getvalue())
    [row] = normalise(read_rows(tmp_path / "rows.parquet", "rows.parquet"), "messages")
    assert row.sample.tools == [{"type": "function", "function": tool} for tool in tools]
