"""Everything that POST /v1/jobs refuses, each by its JSON path, with nothing queued."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.base_models.quantised import find_original, is_quantised
from app.jobs.spec import merged

BUILT_IN = "smollm2-135m-instruct"


def refuse(client, spec):
    answer = client.post("/v1/jobs", json=spec)
    assert answer.status_code == 422, answer.text
    assert client.get("/v1/jobs").json()["data"] == []
    return answer.json()["error"]


def found(error):
    return {(detail["param"], detail["code"]) for detail in error["details"]}


@pytest.mark.parametrize(
    ("field", "param", "hint"),
    [
        ({"datset": {}}, "datset", "'dataset'"),
        ({"training": {"learnig_rate": 1e-4}}, "training.learnig_rate", "'learning_rate'"),
        ({"lora": {"alfa": 16}}, "lora.alfa", "'alpha'"),
        (
            {"exports": [{"kind": "adapter"}, {"kind": "gguf", "quantisation": "f16"}]},
            "exports[1].quantisation",
            "'quantization'",
        ),
        ({"checkpoints": {"xyz": 1}}, "checkpoints.xyz", "every_steps, keep"),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest_known_one(client, field, param, hint):
    error = refuse(client, {"base_model": BUILT_IN, "dataset": {"file": "file-x"}} | field)
    assert (error["param"], error["code"]) == (param, "invalid_spec")
    assert hint in error["message"]


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"base_model": 3}, "base_model"),
        ({"dataset": {}}, "dataset"),
        ({"dataset": {"file": "file-x", "hub": {"repo": "a/b"}}}, "dataset"),
        ({"dataset": {"hub": {"repo": "/etc"}}}, "dataset.hub.repo"),
        ({"training": {"max_steps": 5, "epochs": 1}}, "training"),
        ({"training": {"batch_size": 0}}, "training.batch_size"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate"),
        ({"lora": {"r": None}}, "lora.r"),
        ({"labels": {"a\tb": "c"}}, "labels.a\tb"),
        ({"exports": []}, "exports"),
        ({"exports": [{"kind": "zip"}]}, "exports[0]"),
        ({"exports": [{}]}, "exports[0]"),
        ({"priority": 1.5}, "priority"),
    ],
)
def test_a_wrong_value_is_refused_by_its_path(client, field, param):
    error = refuse(client, {"base_model": BUILT_IN, "dataset": {"file": "file-x"}} | field)
    assert (error["param"], error["code"]) == (param, "invalid_spec")


def test_all_that_is_wrong_is_listed_at_once(client):
    error = refuse(client, {"datset": 1, "dataset": {"file": "x"}, "training": {"batch_size": 0, "stepz": 2}})
    assert {detail["param"] for detail in error["details"]} == {"base_model", "datset", "training.batch_size", "training.stepz"}
    error = refuse(
        client,
        {
            "base_model": "smollm2",
            "dataset": {"file": "file-x", "validation_file": "file-y"},
            "gpus": 2,
            "exports": [{"kind": "gguf", "quantization": "q4_k_m"}, {"kind": "merged"}, {"kind": "merged"}],
        },
    )
    assert found(error) == {
        ("base_model", "model_not_found"),
        ("dataset.file", "dataset_not_found"),
        ("dataset.validation_file", "dataset_not_found"),
        ("gpus", "not_available"),
        ("exports[2]", "invalid_spec"),
    }


PUBLISHED = {"repo": "me/x", "artifacts": ["adapter"], "token": "secret:hf"}


@pytest.mark.parametrize(
    ("publish", "param"),
    [
        ([PUBLISHED | {"repo": "x"}], "publish[0].repo"),
        ([PUBLISHED | {"repo": "me/x.git"}], "publish[0].repo"),
        ([PUBLISHED | {"repo": "../x"}], "publish[0].repo"),
        ([PUBLISHED | {"token": "hf_itself"}], "publish[0].token"),
        ([PUBLISHED | {"artifacts": []}], "publish[0].artifacts"),
        ([PUBLISHED | {"artifacts": ["merged"]}], "publish[0].artifacts"),
        ([PUBLISHED, PUBLISHED | {"repo": "Me/X"}], "publish[1].repo"),
        ([PUBLISHED | {"token": "secret:none"}], "publish[0].token"),
        ([{"repo": "me/x", "artifacts": ["adapter"]}], "publish[0].token"),
    ],
)
def test_what_cannot_be_published_is_refused_at_once(client, upload, publish, param):
    client.put("/v1/secrets/hf", json={"value": "hf_x"})
    spec = {"base_model": BUILT_IN, "dataset": {"file": upload()["id"]}, "exports": [{"kind": "adapter"}], "publish": publish}
    answer = client.post("/v1/jobs", json=spec)
    assert answer.status_code == 422
    assert [detail["param"] for detail in answer.json()["error"]["details"]] == [param]
    assert "hf_itself" not in answer.text


def test_an_export_that_is_to_be_published_and_not_asked_for_comes_with_a_patch(client, upload):
    client.put("/v1/secrets/hf", json={"value": "hf_x"})
    publish = [PUBLISHED | {"artifacts": ["adapter", "merged"]}]
    spec = {"base_model": BUILT_IN, "dataset": {"file": upload()["id"]}, "exports": [{"kind": "adapter"}], "publish": publish}
    [detail] = client.post("/v1/jobs", json=spec).json()["error"]["details"]
    answer = client.post("/v1/jobs", json=spec | detail["patch"])
    assert answer.status_code == 201
    assert answer.json()["spec"]["publish"] == [publish[0] | {"private": True}]


LATER = {
    "training.memory": "low",
    "preemptible": True,
    "gpus": 2,
}


@pytest.mark.parametrize("param", LATER)
@pytest.mark.provokes("not_available")
def test_what_later_versions_bring_is_refused_with_a_patch_that_puts_it_right(client, upload, param):
    spec = {"base_model": BUILT_IN, "dataset": {"file": upload()["id"]}}
    *parents, name = param.split(".")
    place = spec
    for parent in parents:
        place = place.setdefault(parent, {})
    place[name] = LATER[param]
    error = refuse(client, spec)
    assert found(error) == {(param, "not_available")}
    if "patch" in error["details"][0]:
        assert client.post("/v1/jobs", json=merged(spec, error["details"][0]["patch"])).status_code == 201


ADAPTERS = [
    {"quantization": "int8"},
    {"quantization": "none", "lora": {"variant": "dora"}},
    {"lora": {"variant": "rslora", "target_modules": ["q_proj", "v_proj"]}},
    {"lora": {"modules_to_save": ["embed_tokens", "lm_head"]}},
]


@pytest.mark.parametrize("more", ADAPTERS)
def test_adapters_of_any_kind_are_taken(client, upload, more):
    answer = client.post("/v1/jobs", json={"base_model": BUILT_IN, "dataset": {"file": upload()["id"]}} | more)
    assert answer.status_code == 201, answer.text
    assert client.post("/v1/jobs", json=answer.json()["spec"]).status_code == 201


STOPPING = {"early_stopping": {"patience": 2}, "evaluation": {"every_steps": 10}}


@pytest.mark.parametrize(
    ("more", "params"),
    [
        ({"early_stopping": {}}, {"early_stopping"}),
        ({"early_stopping": {}, "evaluation": {"every_steps": 5}}, {"early_stopping"}),
        ({"evaluation": {"every_steps": 5}}, {"evaluation.every_steps"}),
        (STOPPING | {"early_stopping": {"patience": 0}}, {"early_stopping.patience"}),
        (STOPPING | {"early_stopping": {"pacience": 2}}, {"early_stopping.pacience"}),
    ],
)
def test_measuring_at_intervals_needs_rows_and_an_interval(client, upload, more, params):
    spec = {"base_model": BUILT_IN, "dataset": {"file": upload()["id"]}}
    error = refuse(client, spec | more)
    assert {param for param, _ in found(error)} == params
    patched = spec | more
    for detail in error["details"]:
        patched = merged(patched, detail.get("patch") or {})
    if all("patch" in detail for detail in error["details"]):
        assert client.post("/v1/jobs", json=patched).status_code == 201


def test_early_stopping_has_defaults(client, upload):
    spec = {"base_model": BUILT_IN, "dataset": {"file": upload()["id"], "validation_fraction": 0.2}}
    answer = client.post("/v1/jobs", json=spec | STOPPING)
    assert answer.json()["spec"]["early_stopping"] == {"patience": 2, "min_delta": 0.0}


def test_dora_on_8_bit_weights_is_not_there_yet(client, upload):
    spec = {"base_model": BUILT_IN, "dataset": {"file": upload()["id"]}, "quantization": "int8", "lora": {"variant": "dora"}}
    error = refuse(client, spec)
    assert found(error) == {("quantization", "not_available")}
    assert client.post("/v1/jobs", json=merged(spec, error["details"][0]["patch"])).status_code == 201


@pytest.mark.parametrize("exports", [[{"kind": "adapter"}] * 2, [{"kind": "gguf"}, {"kind": "gguf", "quantization": "q8_0"}]])
def test_an_export_is_asked_for_once(client, upload, exports):
    error = refuse(client, {"base_model": BUILT_IN, "dataset": {"file": upload()["id"]}, "exports": exports})
    assert found(error) == {("exports[1]", "invalid_spec")}


def test_two_gguf_files_of_different_quantization_are_fine(submit):
    submit(exports=[{"kind": "gguf"}, {"kind": "gguf", "quantization": "f16"}])


def report(rows, refused, form="messages"):
    refusals = [{"line": 7, "code": "no_answer", "reason": "The last turn is not the assistant's."}] if refused else []
    return {"rows": rows, "rows_refused": refused, "format": form, "refusals": refusals, "duplicates": 0}


def test_a_data_set_with_refused_rows_needs_max_refused(client, upload, inspected):
    file_id = upload()["id"]
    inspected(file_id, report=report(10, 2))
    spec = {"base_model": BUILT_IN, "dataset": {"file": file_id, "max_refused": 1}}
    error = refuse(client, spec)
    assert found(error) == {("dataset.file", "dataset_invalid")}
    assert "Line 7" in error["message"]
    spec["dataset"] |= error["details"][0]["patch"]["dataset"]
    assert client.post("/v1/jobs", json=spec).status_code == 201


@pytest.mark.parametrize(
    ("form", "fields", "patch"),
    [
        ("preference", {}, {"method": "dpo"}),
        (
            "preference",
            {"method": "cpt", "training": {"assistant_only_loss": False}},
            {"method": "dpo", "training": {"assistant_only_loss": True}},
        ),
        ("messages", {"method": "dpo"}, {"method": "sft"}),
        ("text", {"method": "dpo", "preference": {"beta": 0.3}}, {"method": "sft", "preference": {"beta": 0.1}}),
    ],
)
@pytest.mark.parametrize("told_by", ["report", "spec"])
def test_a_method_that_cannot_learn_from_the_rows_is_refused(client, upload, inspected, form, fields, patch, told_by):
    file_id = upload()["id"]
    if told_by == "report":
        inspected(file_id, report=report(10, 0, form))
    spec = {"base_model": BUILT_IN, "dataset": {"file": file_id, "format": form if told_by == "spec" else "auto"}} | fields
    error = refuse(client, spec)
    [detail] = error["details"]
    assert (detail["param"], detail["code"]) == ("dataset.file" if told_by == "report" else "dataset.format", "invalid_spec")
    assert detail["patch"] == patch
    assert client.post("/v1/jobs", json=merged(spec, patch)).status_code == 201


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"preference": {"beta": 0.3}}, "preference"),
        ({"method": "cpt", "preference": {"beta": 0.3}}, "preference"),
        ({"method": "dpo", "training": {"assistant_only_loss": False}}, "training.assistant_only_loss"),
    ],
)
def test_what_a_method_has_no_use_for_is_refused(client, upload, fields, param):
    spec = {"base_model": BUILT_IN, "dataset": {"file": upload()["id"]}} | fields
    error = refuse(client, spec)
    assert found(error) == {(param, "invalid_spec")}
    assert client.post("/v1/jobs", json=merged(spec, error["details"][0]["patch"])).status_code == 201


@pytest.mark.parametrize("fields", [{"method": "cpt"}, {"method": "dpo", "preference": {"beta": 0.3}}])
def test_every_method_is_taken(submit, fields):
    spec = submit(**fields)["spec"]
    assert {name: spec[name] for name in fields} == fields


def test_a_data_set_with_nothing_to_train_on_is_refused(client, upload, inspected):
    file_id = upload()["id"]
    inspected(file_id, report=report(3, 3))
    error = refuse(client, {"base_model": BUILT_IN, "dataset": {"file": file_id, "max_refused": 100}})
    assert found(error) == {("dataset.file", "dataset_empty")}


def test_an_unreadable_file_is_refused_with_what_the_worker_found(client, upload, inspected):
    file_id = upload()["id"]
    inspected(file_id, problem="Line 1 is not JSON.")
    error = refuse(client, {"base_model": BUILT_IN, "dataset": {"file": file_id}})
    assert (error["param"], error["code"]) == ("dataset.file", "dataset_invalid")
    assert "Line 1 is not JSON." in error["message"]


def test_a_file_that_no_worker_has_read_yet_is_taken(submit):
    submit()


def test_rows_are_held_out_by_a_file_or_by_a_fraction(client, upload):
    rows, others = upload()["id"], upload(name="others.jsonl")["id"]
    for field, instead in (("validation_fraction", 0.1), ("validation_file", rows)):
        data_set = {"file": rows, "validation_file": others, field: instead}
        error = refuse(client, {"base_model": BUILT_IN, "dataset": data_set})
        assert found(error) == {("dataset.validation_file", "invalid_spec")}
        fixed = merged({"base_model": BUILT_IN, "dataset": data_set}, error["details"][0]["patch"])
        job = client.post("/v1/jobs", json=fixed)
        assert job.status_code == 201
        client.delete(f"/v1/jobs/{job.json()['id']}")


def test_a_validation_file_has_only_rows_that_can_be_used(client, upload, inspected):
    rows, others = upload()["id"], upload(name="others.jsonl")["id"]
    inspected(others, report=report(10, 2))
    spec = {"base_model": BUILT_IN, "dataset": {"file": rows, "validation_file": others, "max_refused": 5}}
    error = refuse(client, spec)
    assert found(error) == {("dataset.validation_file", "dataset_invalid")}
    assert "Line 7" in error["message"]


def test_a_validation_file_stays_while_a_job_needs_it(client, upload, submit):
    others = upload(name="others.jsonl")["id"]
    submit(dataset={"file": upload()["id"], "validation_file": others})
    answer = client.delete(f"/v1/files/{others}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_in_use")


@pytest.fixture
def models_dir(tmp_path, monkeypatch):
    """Set before the client's settings are read, because fixtures run in the order of the arguments."""
    monkeypatch.setenv("TUNESMITH_MODELS_DIR", str(tmp_path / "models"))
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.json").write_text("{}")
    return tmp_path / "models"


def make_model(models_dir: Path, name, config=None, weights="model.safetensors"):
    folder = models_dir / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    (folder / weights).write_bytes(b"")


def test_a_folder_of_the_operator_is_a_base_model(models_dir, client, submit):
    make_model(models_dir, "house-llama")
    assert submit(base_model="house-llama")["spec"]["base_model"] == "house-llama"
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [BUILT_IN, "house-llama"]
    assert client.get("/v1/models/house-llama").json()["owned_by"] == "operator"
    assert client.get("/v1/models/other").status_code == 404


@pytest.mark.parametrize(
    ("base_model", "code", "hint"),
    [
        ("smollm2-135m-instuct", "model_not_found", BUILT_IN),
        ("house-lama", "model_not_found", "'house-llama'"),
        ("../secret", "model_not_found", "OWNER/NAME"),
        ("/etc", "model_not_found", "OWNER/NAME"),
        ("a/b/c", "model_not_found", "OWNER/NAME"),
        ("..", "model_not_found", "OWNER/NAME"),
        ("house-4bit", "model_unsupported", "quantised"),
        ("pickled", "model_unsupported", "safetensors"),
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "model_unsupported", "unsloth/Llama-3.2-1B-Instruct."),
        ("TheBloke/Llama-2-7B-GPTQ", "model_unsupported", "16-bit original."),
    ],
)
def test_a_base_model_that_is_none_is_refused(models_dir, client, upload, base_model, code, hint):
    make_model(models_dir, "house-llama")
    make_model(models_dir, "house-4bit", {"quantization_config": {"load_in_4bit": True}})
    make_model(models_dir, "pickled", weights="pytorch_model.bin")
    error = refuse(client, {"base_model": base_model, "dataset": {"file": upload()["id"]}})
    assert found(error) == {("base_model", code)}
    assert hint in error["message"]


def test_a_revision_is_for_models_of_the_hub(client, upload):
    error = refuse(client, {"base_model": BUILT_IN, "revision": "main", "dataset": {"file": upload()["id"]}})
    assert found(error) == {("revision", "invalid_spec")}


def test_a_model_of_the_hub_is_taken_unseen_while_the_hub_is_away(submit):
    submit(base_model="HuggingFaceTB/SmolLM2-360M-Instruct", revision="main")


@pytest.mark.parametrize(
    ("repo", "original"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "unsloth/Qwen3-8B"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct-GGUF", "Qwen/Qwen2.5-7B-Instruct"),
        ("mlx-community/Llama-3.2-1B-Instruct-4bit", None),
        ("meta-llama/Llama-3.2-1B-Instruct", None),
        ("mistralai/Mistral-7B-v0.3", None),
        ("google/gemma-3-4b-it", None),
    ],
)
def test_quantised_repositories_are_told_by_their_names(repo, original):
    assert find_original(repo) == original
    assert is_quantised(repo) == (original is not None or repo.endswith("4bit"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "base_model",
    "dataset",
    "training",
    "lora",
    "exports",
    "labels",
    "name",
    "priority",
    "checkpoints",
    "evaluation",
    "publish",
]


SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
"""Those of the profile are not suppressed where a test names its own."""


@settings(max_examples=60, suppress_health_check=SUPPRESSED)
@given(body=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), JSON, max_size=6) | JSON)
def test_no_json_makes_the_service_fail_and_every_refusal_names_a_path(client, body):
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code", "details"}
    assert all(detail["param"] and detail["message"] for detail in error["details"])


@settings(max_examples=40, suppress_health_check=SUPPRESSED)
@given(body=st.binary(max_size=60))
def test_no_bytes_make_the_service_fail(client, body):
    answer = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["error"]["message"]
