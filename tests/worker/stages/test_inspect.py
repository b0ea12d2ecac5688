import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.jobs.states import FailureCode
from worker.stages import Inputs, Report, StageFailure
from worker.stages.inspect import run

GOOD = {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}


def inputs_of(tmp_path: Path, content: str, filename: str) -> Inputs:
    blob = tmp_path / "blob"
    blob.write_text(content)
    return Inputs(cache_dir=tmp_path, models_dir=None, converter_dir=tmp_path, title="file", file=blob, filename=filename)


def inspect(tmp_path: Path, content: str, filename: str = "rows.jsonl"):
    return run(None, inputs_of(tmp_path, content, filename), tmp_path, Report(tmp_path / "events.jsonl")).values["report"]


def test_the_report_tells_what_is_in_the_file(tmp_path):
    unanswered = {"conversations": GOOD["conversations"][:1]}
    longer = {"conversations": GOOD["conversations"] * 2, "source": "x"}
    lines = [json.dumps(row) for row in (GOOD, GOOD, unanswered, longer)] + ["{"]
    assert inspect(tmp_path, "\n".join(lines)) == {
        "rows": 5,
        "rows_refused": 2,
        "refusals": [
            {"line": 3, "code": "no_answer", "reason": "The last turn is the user's: nothing answers it."},
            {"line": 5, "code": "invalid_json", "reason": "Expecting property name enclosed in double quotes at column 2."},
        ],
        "refused_by_code": {"no_answer": 1, "invalid_json": 1},
        "format": "sharegpt",
        "container": "jsonl",
        "columns": ["conversations", "source"],
        "duplicates": 1,
        "duplicate_lines": [2],
        "turns": {"min": 2, "mean": 2.7, "max": 4},
        "characters": {"min": 7, "mean": 9.3, "max": 14},
    }


def test_a_file_of_refused_rows_still_has_a_report(tmp_path):
    report = inspect(tmp_path, "instruction,output\nWhy?,\n", "rows.csv")
    assert (report["rows"], report["rows_refused"], report["format"], report["characters"]) == (1, 1, "alpaca", None)


@pytest.mark.parametrize("content", ["not data\nat all", '{"question": "x", "reply": "y"}\n'])
def test_a_file_that_is_no_data_fails(tmp_path, content):
    with pytest.raises(StageFailure) as failure:
        inspect(tmp_path, content)
    assert failure.value.code == FailureCode.DATASET_INVALID


def test_no_ml_library_is_loaded():
    code = "import sys, worker.stages.inspect; print({'torch', 'transformers', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
