import json

import pytest

from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode
from worker.stages import Inputs, Report, StageFailure, measure, preview


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def ask(tmp_path, models_dir):
    """Runs `measure`, or `preview` of a row, over rows; its values and what it reported."""

    def run(rows, *, row=None, dataset=None, method="sft", **training):
        file = tmp_path / "blob"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        places = {"cache_dir": tmp_path, "models_dir": models_dir, "converter_dir": tmp_path, "title": "file"}
        inputs = Inputs(**places, file=file, filename="rows.jsonl", row=row)
        spec = JobSpec(base_model="small", method=method, dataset={"file": "file-1"} | (dataset or {}), training=training)
        events = tmp_path / "events.jsonl"
        stage = measure if row is None else preview
        values = stage.run(spec, inputs, tmp_path / "out", Report(events)).values
        return values["report" if row is None else "preview"], [json.loads(line) for line in events.read_text().splitlines()]

    return run


ROWS = [chat(f"What is {number}?", "A number.") for number in range(20)]


def test_a_file_is_counted_as_a_job_would(ask, tmp_path):
    report, events = ask([*ROWS, ROWS[0], chat("Why?", ""), chat("Tell me.", "word " * 200)], max_seq_length=128)
    assert (report["rows"], report["rows_refused"], report["rows_used"], report["duplicates"]) == (23, 1, 22, 1)
    assert [refusal["line"] for refusal in report["refusals"]] == [22]
    assert (report["rows_cut"], report["cut_lines"]) == (1, [23])
    assert 0 < report["trained_tokens"] < report["tokens"]
    assert report["packed_rows"] < 22
    assert (report["base_model"], len(report["tokenizer_sha256"]), report["assistant_only_loss"]) == ("small", 64, True)
    assert {event["message"].split(":")[0] for event in events} == {"Reading the data set", "Tokenising"}
    assert not (tmp_path / "out").exists()


def test_a_file_without_anything_to_learn_is_still_measured(ask):
    report, _ = ask([chat("Why?", "")])
    assert (report["rows_used"], report["tokens"], report["trained_share"], report["packed_rows"]) == (0, 0, None, 0)


def test_a_preview_shows_every_token_and_where_the_row_ends(ask):
    whole, _ = ask(ROWS, row=3)
    assert (whole["row"], whole["line"], whole["refused"], whole["cut_at"]) == (3, 4, None, None)
    assert "".join(token["text"] for token in whole["tokens"]) == whole["text"]
    assert whole["text"].endswith("<|im_start|>user\nWhat is 3?<|im_end|>\n<|im_start|>assistant\nA number.<|im_end|>\n")
    assert "".join(token["text"] for token in whole["tokens"] if token["trained"]) == "A number.<|im_end|>"
    assert whole["trained_tokens"] == sum(token["trained"] for token in whole["tokens"])
    assert whole["chat_template"]["source"] == "model"
    row = chat("Tell me.", "word " * 99)
    cut, _ = ask([row], row=0, max_seq_length=48)
    assert (cut["cut_at"], len(cut["tokens"]) > 100, cut["tokens"][48]["kept"]) == (48, True, False)
    dropped, _ = ask([row], row=0, max_seq_length=48, dataset={"long_rows": "drop"})
    assert (dropped["cut_at"], dropped["trained_tokens"]) == (0, 0)


def test_a_preview_shows_what_continued_pretraining_learns(ask):
    whole, _ = ask(ROWS, row=3, method="cpt")
    assert [token["trained"] for token in whole["tokens"]] == [False] + [True] * (whole["token_count"] - 1)
    parts, _ = ask([chat("Tell me.", "word " * 99)], row=0, max_seq_length=48, method="cpt")
    assert (parts["documents"], parts["cut_at"]) == (3, None)
    assert parts["trained_tokens"] == parts["token_count"] - 3


def test_a_preview_of_a_split_row_shows_its_parts(ask):
    row = {"messages": [turn for number in range(4) for turn in chat(f"What is {number}?", "A number.")["messages"]]}
    parts, _ = ask([row], row=0, max_seq_length=64)
    assert (parts["documents"] > 1, parts["cut_at"]) == (True, None)
    assert sorted({token["document"] for token in parts["tokens"]}) == list(range(parts["documents"]))


def test_a_row_that_is_refused_says_why(ask):
    found, _ = ask([ROWS[0], chat("Why?", "")], row=1)
    assert (found["line"], found["refused"]["code"], found["tokens"]) == (2, "empty_answer", [])
    with pytest.raises(StageFailure) as failure:
        ask(ROWS, row=20)
    assert (failure.value.code, failure.value.param) == (FailureCode.INVALID_SPEC, "row")
