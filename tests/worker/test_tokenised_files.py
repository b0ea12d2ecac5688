"""A report and a preview for a base model, from the request through a real stage process to the answer."""

import json

import pytest

from app.jobs.states import Resource
from app.storage import Storage
from worker.data import built_in_model
from worker.data.gguf_weights import read_gguf
from worker.runner import Runner, work


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def worked(client, engine, settings, no_broker, tmp_path):
    """A folder model whose tokenizer is the built-in one's; runs what a cpu worker would."""
    settings.models_dir = tmp_path / "models"
    folder = settings.models_dir / "small"
    folder.mkdir(parents=True)
    metadata, _ = read_gguf(built_in_model.source_file())
    for name, content in built_in_model.json_files(metadata).items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"])
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return lambda: work(Runner(engine, settings, Storage(settings.root), "wrk_test"), Resource.CPU)


def test_what_is_asked_of_a_file_is_made_and_answered(client, worked):
    def upload(rows):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", lines)}}
        return client.post("/v1/files", **form).json()["id"]

    rows = [chat(f"What is {number}?", "A number.") for number in range(5)]
    file_id, held_out = upload([*rows, chat("Why?", "")]), upload(rows[:1])
    report = f"/v1/files/{file_id}/report?base_model=small&validation_file={held_out}"
    preview = f"/v1/files/{file_id}/preview?base_model=small&row=1"
    missing = f"/v1/files/{file_id}/preview?base_model=small&row=6"
    for path in (report, preview, missing):
        assert client.get(path).status_code == 202
    worked()
    found = client.get(report).json()
    assert (found["rows"], found["rows_refused"], found["rows_used"], found["rows_leaked"]) == (6, 1, 4, 1)
    assert (found["container"], found["validation"]["rows_used"], found["base_model"]) == ("jsonl", 1, "small")
    assert "What is 1?" in client.get(preview).json()["text"]
    error = client.get(missing).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_spec", "row")
    assert client.get(f"/v1/files/{file_id}").json()["status"] == "processed"
