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
from worker.data.hub_datasets import open_hub_dataset
from worker.stages import StageFailure
def answer(source, token=None):
    try:
        read, commit = open_hub_dataset(
            HubDataset(**source), cache_dir=Path(sys.argv[1]), token=token, report=lambda kind, **data: None
        )
        return [commit, [row.fields for row in read()]]
    except StageFailure as failure:
        return [failure.code, failure.param]
print(json.dumps([answer(*request) for request in json.loads(sys.argv[2])]))
"""
ROWS = [{"text": f"text {number}"} for number in range(5)]


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
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return open_in_process


@pytest.fixture
def parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    return (tmp_path / "rows.parquet").read_bytes()


def test_parquet_and_json_are_read(hub, parquet, open_all):
    jsonl = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    commits = [
        hub.add("datasets", "org/parquet", {"data/test-00000-of-00001.parquet": parquet}),
        hub.add("datasets", "org/json", {"train.jsonl": jsonl}),
    ]
    answers = open_all([{"repo": "org/parquet", "split": "test[:3]"}], [{"repo": "org/json"}])
    assert answers == [[commits[0], ROWS[:3]], [commits[1], ROWS]]


def test_data_sets_that_cannot_be_read_have_their_codes(hub, parquet, open_all):
    hub.add("datasets", "org/rows", {"train.parquet": parquet})
    hub.add("datasets", "org/broken", {"train.parquet": parquet[:100]})
    hub.add("datasets", "org/script", {"script.py": b"import os"})
    hub.add("datasets", "org/csv", {"a.csv": b"text\nx\n"})
    hub.add("datasets", "org/gated", {"train.parquet": parquet}, gated=True)
    cases = [
        ({"repo": "org/none"}, "dataset_not_found", "dataset.hub.repo"),
        ({"repo": "org/rows", "revision": "0" * 40}, "dataset_not_found", "dataset.hub.revision"),
        ({"repo": "org/rows", "split": "test"}, "invalid_spec", "dataset.hub.split"),
        ({"repo": "org/rows", "config": "other"}, "invalid_spec", "dataset.hub.config"),
        ({"repo": "org/broken"}, "dataset_invalid", "dataset.hub.repo"),
        ({"repo": "org/script"}, "dataset_invalid", "dataset.hub.repo"),
        ({"repo": "org/csv"}, "dataset_invalid", "dataset.hub.repo"),
        ({"repo": "org/gated"}, "hub_unauthorized", "dataset.hub.repo"),
    ]
    assert open_all(*[[case[0]] for case in cases]) == [list(case[1:]) for case in cases]
    assert open_all([{"repo": "org/gated"}, "hf_reader"])[0][1] == ROWS
    assert open_all([{"repo": "org/rows"}], HF_HUB_OFFLINE="1") == [["hub_unavailable", None]]
