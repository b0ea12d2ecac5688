"""Data sets of a hub of the test's own, with the real clients."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer

OPEN = """
import json, sys
from pathlib import Path
from app.jobs.spec import HubDataset
from worker.data import hub
from worker.data.hub_datasets import open_hub_dataset
from worker.stages import StageFailure
hub.PAUSES = (0.01, 0.01)
def answer(source, token=None):
    reports = []
    def report(kind, **data):
        reports.append(data["message"])
    try:
        read, commit = open_hub_dataset(HubDataset(**source), cache_dir=Path(sys.argv[1]), token=token, report=report)
        return {"commit": commit, "rows": [row.fields for row in read()], "reports": reports}
    except StageFailure as failure:
        return {key: getattr(failure, key) for key in ("code", "message", "hint", "param", "patch")} | {"reports": reports}
print(json.dumps([answer(*request) for request in json.loads(sys.argv[2])]))
"""
ROWS = [{"text": f"text {number}"} for number in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def open_all(hub, tmp_path):
    """Opens data sets, each given as source and token, in one fresh process that talks to the test's hub."""

    def open_in_process(*requests, **environment):
        environment = os.environ | hub.environment | {"HF_HOME": str(tmp_path / "home")} | environment
        command = [sys.executable, "-c", OPEN, str(tmp_path / "cache"), json.dumps(requests)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return open_in_process


@pytest.fixture
def parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    return (tmp_path / "rows.parquet").read_bytes()


def test_parquet_json_and_csv_are_read(hub, parquet, open_all):
    csv = b"question,answer\n1,007\n,\n"
    commits = [
        hub.add("datasets", "org/parquet", {"data/test-00000-of-00001.parquet": parquet}),
        hub.add("datasets", "org/json", {"train.jsonl": LINES}),
        hub.add("datasets", "org/csv", {"train.csv": csv}),
    ]
    hub.page_size = 1
    answers = open_all([{"repo": "org/parquet", "split": "test[:3]"}], [{"repo": "org/json"}], [{"repo": "org/csv"}])
    assert [answer["commit"] for answer in answers] == commits
    texts = [{"question": "1", "answer": "007"}, {"question": "", "answer": ""}]
    assert [answer["rows"] for answer in answers] == [ROWS[:3], ROWS, texts]


def test_only_the_split_that_is_asked_for_is_downloaded_and_only_once(hub, parquet, open_all):
    files = {"train.jsonl": LINES, "test.jsonl": LINES.replace(b"text ", b"test "), "pages/00-train.jsonl": LINES}
    commit = hub.add("datasets", "org/two", files)
    tests = [row | {"text": row["text"].replace("text", "test")} for row in ROWS]
    first, again = open_all([{"repo": "org/two", "split": "test"}], [{"repo": "org/two", "split": "test", "revision": commit}])
    assert (first["rows"], again["rows"]) == (tests, tests)
    fetched = [request.rpartition("/")[2] for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
    assert fetched.count("test.jsonl") == 1
    assert "train.jsonl" not in fetched
    [train] = open_all([{"repo": "org/two"}])
    assert train["rows"][:5] == ROWS


def test_data_sets_that_cannot_be_read_have_their_codes(hub, parquet, open_all):
    hub.add("datasets", "org/rows", {"train.parquet": parquet})
    hub.add("datasets", "org/broken", {"train.parquet": parquet[:100]})
    hub.add("datasets", "org/script", {"script.py": b"import os"})
    hub.add("datasets", "org/pictures", {"a.png": b"x"})
    hub.add("datasets", "org/texts", {"train.txt": b"Once upon a time\n"})
    card = b"---\nconfigs:\n- config_name: one\n  data_files: a.jsonl\n- config_name: two\n  data_files: b.jsonl\n---\n"
    hub.add("datasets", "org/configs", {"README.md": card, "a.jsonl": LINES, "b.jsonl": LINES})
    cases = [
        ({"repo": "org/none"}, "dataset_not_found", "repo", "does not exist"),
        ({"repo": "org/rows", "revision": "0" * 40}, "dataset_not_found", "revision", "no such revision"),
        ({"repo": "org/rows", "split": "test"}, "invalid_spec", "split", "it has 'train', not 'test'"),
        ({"repo": "org/rows", "split": "train+test"}, "invalid_spec", "split", "train[:1000]"),
        ({"repo": "org/rows", "config": "other"}, "invalid_spec", "config", "it has 'default', not 'other'"),
        ({"repo": "org/configs"}, "invalid_spec", "config", "it has 'one', 'two', not None"),
        ({"repo": "org/broken"}, "dataset_invalid", "repo", "cannot be used"),
        ({"repo": "org/script"}, "dataset_invalid", "repo", "cannot be used"),
        ({"repo": "org/pictures"}, "dataset_invalid", "repo", "cannot be used"),
        ({"repo": "org/texts"}, "dataset_invalid", "repo", "neither Parquet, JSON nor CSV"),
    ]
    for (_, code, field, words), answer in zip(cases, open_all(*[[case[0]] for case in cases]), strict=True):
        assert (answer["code"], answer["param"]) == (code, f"dataset.hub.{field}")
        assert words in answer["message"]
    [answer] = open_all([{"repo": "org/configs", "config": "two"}])
    assert answer["rows"] == ROWS
    [answer] = open_all([{"repo": "org/rows"}], HF_HUB_OFFLINE="1")
    assert (answer["code"], answer["param"]) == ("hub_unavailable", None)


def test_a_closed_data_set_needs_a_token_also_when_it_is_in_the_cache(hub, parquet, open_all):
    hub.add("datasets", "org/gated", {"train.parquet": parquet, "README.md": b"# x"}, gated=True, readers={"hf_friend"})
    hub.add("datasets", "org/private", {"train.parquet": parquet}, private=True, readers={"hf_friend"})
    asked = [("org/gated", token) for token in (None, "hf_reader", "hf_friend", "hf_reader", "hf_wrong")]
    asked += [("org/private", token) for token in ("hf_reader", "hf_friend", "hf_reader")]
    answers = open_all(*[[{"repo": repo}, token] for repo, token in asked])
    assert [answer.get("rows") or (answer["code"], answer["param"]) for answer in answers] == [
        ("hub_unauthorized", "dataset.hub.repo"),
        ("hub_unauthorized", "dataset.hub.repo"),
        ROWS,
        ("hub_unauthorized", "dataset.hub.repo"),
        ("hub_unauthorized", "hub_token"),
        ("dataset_not_found", "dataset.hub.repo"),
        ROWS,
        ("dataset_not_found", "dataset.hub.repo"),
    ]


def test_a_hub_that_is_ill_for_a_while_is_sat_out(hub, parquet, open_all):
    hub.add("datasets", "org/rows", {"train.parquet": parquet})
    hub.befall("GET /api/datasets", status=503, times=2)
    hub.befall("GET /api/datasets/org/rows/tree", status=503)
    hub.befall("GET /content", status=502)
    hub.befall("GET /content", cut=100)
    [answer] = open_all([{"repo": "org/rows"}])
    assert answer["rows"] == ROWS
    assert any("Trying again" in message for message in answer["reports"])
    hub.add("datasets", "org/away", {"train.parquet": parquet})
    hub.befall("GET /api/datasets", status=503, times=99)
    [answer] = open_all([{"repo": "org/away"}])
    assert answer["code"] == "hub_unavailable"
