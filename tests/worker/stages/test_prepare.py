import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer

from app.jobs.spec import JobSpec
from worker.data.plan import Plan
from worker.data.tokenizer import load_tokenizer
from worker.stages import Inputs, Report, StageFailure
from worker.stages.prepare import run


@pytest.fixture
def request_of(tmp_path, models_dir):
    """What a supervisor would ask for: the spec, with changes, and inputs with the rows as an uploaded JSONL file."""

    def make(rows=None, *, files=None, **spec):
        file = None
        if rows is not None:
            file = tmp_path / "blob"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            spec["dataset"] = {"file": "file-1"} | spec.get("dataset", {})
        places = {"cache_dir": tmp_path / "cache", "models_dir": models_dir, "converter_dir": tmp_path}
        return {"base_model": "small"} | spec, Inputs(**places, title="job", file=file, filename="rows.jsonl", **files or {})

    return make


@pytest.fixture
def prepare(tmp_path, request_of):
    """Runs the stage; its result, its reports and its out folder."""

    def run_here(rows, **changes):
        spec, inputs = request_of(rows, **changes)
        attempt = tmp_path / f"attempt{len(list(tmp_path.iterdir()))}"
        out = attempt / "out"
        out.mkdir(parents=True)
        report = Report(attempt / "events.jsonl")
        try:
            result = {"status": "succeeded", "values": run(JobSpec.model_validate(spec), inputs, out, report).values}
        except StageFailure as failure:
            result = {"status": "failed", "error": vars(failure)}
        return result, read_lines(attempt / "events.jsonl"), out

    return run_here


@pytest.fixture
def prepare_in_process(tmp_path, request_of):
    """The same in a process of its own, as the supervisor does it, with other settings and secrets."""

    def run_there(rows=None, *, environment, secrets=None, **changes):
        spec, inputs = request_of(rows, **changes)
        attempt = tmp_path / f"attempt{len(list(tmp_path.iterdir()))}"
        attempt.mkdir()
        (attempt / "input.json").write_text(json.dumps({"stage": "prepare", "spec": spec, "inputs": inputs.to_json()}))
        command = [sys.executable, "-m", "worker.stages", str(attempt)]
        subprocess.run(
            command, input=json.dumps(secrets or {}), text=True, timeout=280, env=os.environ | environment, check=True
        )
        return json.loads((attempt / "result.json").read_text()), read_lines(attempt / "events.jsonl"), attempt / "out"

    return run_there


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def chat(question, answer):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


ROWS = [chat(f"What is {number} and {number}?", f"It is {2 * number}.") for number in range(40)]


def of_kind(events, kind):
    return [
        {key: value for key, value in event.items() if key not in ("kind", "time")} for event in events if event["kind"] == kind
    ]


def documents_of(plan, tokenizer):
    """The trained text of every document, in the plan's order."""
    texts = []
    for index in range(plan.rows):
        row = plan.row(index)
        starts = [*(row.position_ids == 0).nonzero()[0], len(row.input_ids)]
        for start, end in pairwise(starts):
            labels = row.labels[start:end]
            texts.append(tokenizer.decode(labels[labels >= 0]))
    return texts


def test_rows_become_a_packed_plan(prepare, models_dir):
    result, events, out = prepare(ROWS, training={"max_seq_length": 128, "seed": 5})
    plan = Plan.open(out / "plan")
    assert sorted(documents_of(plan, load_tokenizer(models_dir / "small"))) == sorted(
        f"It is {2 * n}.<|im_end|>" for n in range(40)
    )
    values = result["values"]
    counts = {
        key: values["counts"][key] for key in ("rows", "rows_refused", "tokens", "trained_tokens", "rows_cut", "packed_rows")
    }
    assert of_kind(events, "data") == [counts]
    assert counts == {
        "rows": 40,
        "rows_refused": 0,
        "tokens": len(plan.input_ids),
        "trained_tokens": int(plan.trained.sum()),
        "rows_cut": 0,
        "packed_rows": plan.rows,
    }
    assert plan.rows < 40
    assert (plan.facts["seed"], plan.facts["max_seq_length"]) == (5, 128)
    assert values["base_model"]["name"] == "small"
    assert (values["plan_sha256"], values["validation"], values["format"]) == (plan.facts["sha256"], False, "sharegpt")
    assert {"spec": {"dataset": {"format": "sharegpt"}}} in of_kind(events, "resolved")
    assert prepare(ROWS, training={"max_seq_length": 128, "seed": 5})[0]["values"] == values


def test_validation_rows_are_held_out_and_asked(prepare, models_dir):
    result, _, out = prepare(ROWS, dataset={"validation_fraction": 0.1, "max_samples": 20}, evaluation={"samples": 1})
    tokenizer = load_tokenizer(models_dir / "small")
    training = documents_of(Plan.open(out / "plan"), tokenizer)
    held_out = documents_of(Plan.open(out / "validation"), tokenizer)
    assert (len(training), len(held_out), result["values"]["validation"]) == (20, 2, True)
    assert not set(training) & set(held_out)
    [sample] = [json.loads(line) for line in (out / "validation" / "samples.jsonl").read_text().splitlines()]
    assert f"{sample['reference']}<|im_end|>" in held_out
    assert sample["prompt"].endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(sample["prompt_ids"]) == sample["prompt"]
    assert sample["prompt"].endswith(f"{sample['question']}<|im_end|>\n<|im_start|>assistant\n")
    assert sample["stop_token_ids"] == [2]


@pytest.mark.provokes("dataset_invalid")
def test_refused_rows_fail_the_job_unless_they_are_allowed(prepare):
    rows = [*ROWS, chat("Why?", ""), {"conversations": 7}]
    result, _, _ = prepare(rows)
    error = result["error"]
    assert (result["status"], error["code"], error["param"]) == ("failed", "dataset_invalid", "dataset.max_refused")
    assert "2 of 42 rows" in error["message"]
    assert "Line 41" in error["message"]
    assert error["patch"] == {"dataset": {"max_refused": 2}}
    result, events, _ = prepare(rows, dataset={"max_refused": 2})
    assert (result["values"]["counts"]["rows"], result["values"]["counts"]["rows_refused"]) == (40, 2)
    assert [warning["code"] for warning in of_kind(events, "warning")] == ["rows_refused"]


def test_losses_are_never_silent(prepare):
    rows = [*ROWS, chat("Tell me.", "word " * 200), ROWS[0]]
    result, events, _ = prepare(rows, training={"max_seq_length": 64})
    assert result["values"]["counts"]["rows_cut"] == 1
    assert {warning["code"] for warning in of_kind(events, "warning")} == {"rows_cut", "duplicate_rows"}
    result, events, _ = prepare(rows, training={"max_seq_length": 64}, dataset={"long_rows": "drop", "max_samples": 100})
    assert (result["values"]["counts"]["rows"], result["values"]["counts"]["rows_dropped"]) == (41, 1)
    assert {warning["code"] for warning in of_kind(events, "warning")} == {"rows_dropped", "duplicate_rows", "fewer_rows"}


@pytest.mark.provokes("dataset_invalid", "dataset_empty", "invalid_spec", "model_not_found")
@pytest.mark.parametrize(
    ("rows", "spec", "code", "param"),
    [
        ([chat("Why?", "")], {"dataset": {"max_refused": 5}}, "dataset_invalid", "dataset.max_refused"),
        ([chat("word " * 100, "So.")], {"training": {"max_seq_length": 32}}, "dataset_invalid", "training.max_seq_length"),
        ([{"question": "x"}], {}, "dataset_invalid", "dataset.format"),
        ([chat("Why?", "So " * 9000)], {"training": {"max_seq_length": 100_000}}, "invalid_spec", "training.max_seq_length"),
        ([], {}, "dataset_empty", None),
        (ROWS, {"base_model": "../small"}, "model_not_found", "base_model"),
    ],
)
def test_what_cannot_be_trained_fails_with_its_code(prepare, rows, spec, code, param):
    result, _, _ = prepare(rows, **spec)
    assert (result["status"], result["error"]["code"], result["error"]["param"]) == ("failed", code, param)


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    return (tmp_path / "rows.parquet").read_bytes()


def test_a_hub_data_set_is_read_at_a_pinned_commit(prepare_in_process, hub, parquet, tmp_path):
    commit = hub.add("datasets", "org/rows", {"README.md": b"# rows", "data/train-00000-of-00001.parquet": parquet}, gated=True)
    options = {
        "environment": hub.environment | {"HF_HOME": str(tmp_path / "home")},
        "hub_token": "secret:hf",
        "secrets": {"hf": "hf_reader"},
    }
    result, events, out = prepare_in_process(dataset={"hub": {"repo": "org/rows"}, "max_samples": 30}, **options)
    assert result["values"]["counts"]["rows"] == 30
    assert {"spec": {"dataset": {"hub": {"revision": commit}}}} in of_kind(events, "resolved")
    assert "hf_reader" not in "".join(path.read_text() for path in out.parent.glob("*.json*"))

    lines = "".join(json.dumps(row) + "\n" for row in ROWS[:7]).encode()
    hub.add("datasets", "org/rows", {"train.jsonl": lines})
    pinned, _, _ = prepare_in_process(dataset={"hub": {"repo": "org/rows", "revision": commit}}, **options)
    newest, _, _ = prepare_in_process(dataset={"hub": {"repo": "org/rows"}}, **options)
    assert (pinned["values"]["counts"]["rows"], newest["values"]["counts"]["rows"]) == (40, 7)


def test_rows_of_a_validation_file_are_held_out_and_never_trained_on(prepare, tmp_path, models_dir):
    held_out = tmp_path / "held_out"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS[:2], chat("New?", "Yes.")]))
    files = {"validation_file": held_out, "validation_filename": "held_out.jsonl"}
    result, events, out = prepare(ROWS, dataset={"validation_file": "file-2"}, files=files)
    tokenizer = load_tokenizer(models_dir / "small")
    training, validation = (documents_of(Plan.open(out / name), tokenizer) for name in ("plan", "validation"))
    assert (len(training), sorted(validation)) == (38, ["It is 0.<|im_end|>", "It is 2.<|im_end|>", "Yes.<|im_end|>"])
    report = result["values"]["report"]
    assert (report["rows_leaked"], report["leaked_lines"], report["validation"]["rows_used"]) == (2, [1, 2], 3)
    assert [warning["code"] for warning in of_kind(events, "warning")] == ["held_out_rows"]
    assert (out / "validation" / "samples.jsonl").exists()
    held_out.write_text(json.dumps({"text": "x"}) + "\n")
    result, _, _ = prepare(ROWS, dataset={"validation_file": "file-2"}, files=files)
    assert (result["error"]["code"], result["error"]["param"]) == ("dataset_invalid", "dataset.validation_file")


def test_a_mask_that_leaves_next_to_nothing_stops_the_job(prepare):
    result, events, _ = prepare([chat("word " * 1000, "So.")] * 2)
    assert result["error"]["code"] == "dataset_invalid"
    [data] = of_kind(events, "data")  # what is wrong is told all the same
    assert data["trained_tokens"] < data["tokens"] / 100
    assert [warning["code"] for warning in of_kind(events, "warning")] == ["duplicate_rows"]
    assert "less than 1%" in result["error"]["message"]
    assert result["error"]["patch"] == {"training": {"assistant_only_loss": False}}
    assert prepare([chat("word " * 1000, "So.")], training={"assistant_only_loss": False})[0]["status"] == "succeeded"


def test_the_report_names_what_was_lost(prepare):
    rows = [*ROWS, ROWS[3], chat("Tell me.", "word " * 200)]
    result, _, _ = prepare(rows, training={"max_seq_length": 64})
    report = result["values"]["report"]
    assert (report["duplicates"], report["duplicate_lines"]) == (1, [41])
    assert (report["rows_cut"], report["cut_lines"], report["tokens_lost"] > 100) == (1, [42], True)
    assert report["trained_share"] == round(report["trained_tokens"] / report["tokens"], 4)
    assert report["chat_template"]["family"] == "chatml"
    assert result["values"]["chat_template"] == report["chat_template"]
    assert report["tokens_per_document"]["max"] == 64


def preference(question, chosen, rejected):
    return {"prompt": question, "chosen": chosen, "rejected": rejected}


def test_preferences_become_pairs(prepare, models_dir):
    rows = [preference(f"What is {number}?", "A number.", "No idea.") for number in range(10)]
    _, _, out = prepare(rows, method="dpo", dataset={"validation_fraction": 0.2})
    plan = Plan.open(out / "plan")
    assert (plan.facts["pairs"], plan.rows, plan.facts["documents"]) == (True, 8, 16)
    row = plan.row(0)
    start = row.position_ids.tolist().index(0, 1)
    tokenizer = load_tokenizer(models_dir / "small")
    chosen, rejected = row.labels[:start], row.labels[start:]
    assert tokenizer.decode(chosen[chosen >= 0]) == "A number.<|im_end|>"
    assert tokenizer.decode(rejected[rejected >= 0]) == "No idea.<|im_end|>"
    prompt = int((chosen >= 0).argmax())
    assert row.input_ids[:prompt].tolist() == row.input_ids[start : start + prompt].tolist()
    [sample, _] = read_lines(out / "validation" / "samples.jsonl")
    assert sample["reference"] == "A number."
    for method, data in (("sft", rows), ("dpo", ROWS)):
        error = prepare(data, method=method)[0]["error"]
        assert (error["code"], error["param"]) == ("invalid_spec", "method")
        assert error["patch"] == {"method": "dpo" if method == "sft" else "sft"}


@pytest.mark.parametrize("long_rows", ["split", "cut", "drop"])
@pytest.mark.parametrize("form", ["text", "sharegpt"])
def test_continued_pretraining_learns_every_token_of_any_form(prepare, models_dir, form, long_rows):
    tokenizer = load_tokenizer(models_dir / "small")
    texts = ["Once upon a time there was a tokenizer. " * 20, "Short."]
    rows = [{"text": text} if form == "text" else chat(text, "Yes.") for text in texts]
    options = {"dataset": {"long_rows": long_rows}, "training": {"max_seq_length": 64}}
    result, _, out = prepare(rows, method="cpt", **options)
    report, plan = result["values"]["report"], Plan.open(out / "plan")
    assert result["values"]["format"] == form
    documents = [document for index in range(plan.rows) for document in ids_of(plan.row(index))]
    assert all(trained == len(ids) - 1 for ids, trained in documents)
    assert report["trained_tokens"] == report["tokens"] - len(documents)
    counts = {policy: report[f"rows_{name}"] for policy, name in (("split", "split"), ("cut", "cut"), ("drop", "dropped"))}
    assert counts == {policy: int(policy == long_rows) for policy in counts}
    long, short = (written_ids(tokenizer, form, text) for text in texts)
    assert short in [ids for ids, _ in documents]
    if long_rows == "split":
        learned = Counter(index for ids, _ in documents if ids != short for index in ids[1:])
        assert learned == Counter(long[1:])


def written_ids(tokenizer, form, text):
    """As transformers writes them, and the EOS after a text."""
    if form == "text":
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]
    return tokenizer.apply_chat_template(turns, return_dict=False)


def ids_of(row):
    """The tokens of each document of a row, and how many of them are trained."""
    starts = [*(row.position_ids == 0).nonzero()[0], len(row.input_ids)]
    return [(row.input_ids[start:end].tolist(), int((row.labels[start:end] >= 0).sum())) for start, end in pairwise(starts)]


def test_a_base_model_without_a_template_gets_one_to_publish(prepare, models_dir):
    template = models_dir / "small" / "chat_template.jinja"
    text = template.read_text()
    template.unlink()
    try:
        result, _, out = prepare(ROWS)
    finally:
        template.write_text(text)
    facts = result["values"]["chat_template"]
    assert (facts["source"], facts["family"], facts["stop_token_ids"]) == ("default", "plain", [2])
    assert "User: " in (out / "chat_template.jinja").read_text()
    tokenizer = load_tokenizer(models_dir / "small")
    assert " It is 8.<|im_end|>" in documents_of(Plan.open(out / "plan"), tokenizer)
    assert not (prepare(ROWS)[2] / "chat_template.jinja").exists()


def test_a_model_that_overflows_fp16_is_not_sent_to_a_gpu_in_fp16(prepare, models_dir):
    config = models_dir / "small" / "config.json"
    text = config.read_text()
    config.write_text(json.dumps(json.loads(text) | {"model_type": "gemma3_text"}))
    try:
        error = prepare(ROWS, training={"precision": "fp16"})[0]["error"]
        assert prepare(ROWS, exports=[{"kind": "adapter"}])[0]["status"] == "succeeded"
    finally:
        config.write_text(text)
    assert (error["code"], error["param"]) == ("invalid_spec", "training.precision")
    assert error["patch"] == {"training": {"precision": "auto"}}


@pytest.mark.parametrize("lora", [{"target_modules": ["q_prj"]}, {"modules_to_save": ["wte"]}])
def test_modules_that_the_model_does_not_have_are_named_before_a_gpu_is_claimed(prepare, lora):
    error = prepare(ROWS, lora=lora)[0]["error"]
    assert (error["code"], error["param"]) == ("invalid_spec", f"lora.{next(iter(lora))}")
    assert "norm" in error["message"] or "q_proj" in error["message"]
    assert prepare(ROWS, **error["patch"])[0]["status"] == "succeeded"


def test_measuring_at_intervals_needs_a_row_that_is_held_out(prepare):
    options = {"dataset": {"validation_fraction": 0.5}, "evaluation": {"every_steps": 2}}
    assert prepare(ROWS[:2], **options)[0]["status"] == "succeeded"
    error = prepare(ROWS[:1], **options)[0]["error"]
    assert (error["code"], error["param"]) == ("dataset_invalid", "dataset.validation_fraction")


def test_an_adapter_of_another_revision_of_the_base_is_refused(prepare, tmp_path, models_dir):
    (tmp_path / "adapter").mkdir()
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({"revision": "folder-0"}))
    files = {"adapter": tmp_path / "adapter"}
    result, _, _ = prepare(ROWS, from_job="job_1", files=files)
    assert (result["error"]["param"], result["error"]["patch"]) == ("from_job", {"from_job": None})
    config.write_text(json.dumps({"revision": prepare(ROWS)[0]["values"]["base_model"]["revision"]}))
    assert prepare(ROWS, from_job="job_1", files=files)[0]["status"] == "succeeded"


def test_a_token_that_may_not_write_is_refused_before_anything_is_paid_for(prepare, monkeypatch):
    publish = [{"repo": "me/tuned", "artifacts": ["adapter"], "token": "secret:hf"}]
    asked = {"publish": publish, "exports": [{"kind": "adapter"}], "base_model": "there/is-none"}
    with HubServer() as hub:
        hub.enrol("hf_reader", name="me", role="read")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        result, _, out = prepare([], files={"secrets": {"hf": "hf_reader"}}, **asked)
    assert (result["error"]["code"], result["error"]["param"]) == ("hub_unauthorized", "publish[0].token")
    assert not list(out.iterdir())
