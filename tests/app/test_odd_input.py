"""Text that no field should have: each piece is refused with the field's path, nothing is stored, nothing fails."""

import json

import pytest

SPEC = {"base_model": "smollm2-135m-instruct", "dataset": {"hub": {"repo": "a/b"}}}
JSON = {"content-type": "application/json"}
HALF, NUL = "\ud800", "a\x00b"


def at(path, value):
    """The spec with a value at a path like `dataset.hub.split`."""
    spec = json.loads(json.dumps(SPEC))
    *above, last = path.split(".")
    place = spec
    for name in above:
        place = place.setdefault(name, {})
    place[last] = value
    return spec


@pytest.mark.parametrize("text", [HALF, NUL, "\x1b[2J", "x" * 5000], ids=["half", "nul", "escape", "long"])
def test_odd_text_is_refused_in_every_field_of_a_job(client, text):
    fields = ["base_model", "revision", "name", "purpose", "hub_token", "from_job", "labels.key", "dataset.format"]
    fields += ["dataset.validation_file", "dataset.hub.repo", "dataset.hub.config", "dataset.hub.split", "dataset.hub.revision"]
    for field in fields:
        answer = client.post("/v1/jobs", content=json.dumps(at(field, text)), headers=JSON)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, field), answer.text
    modules = client.post("/v1/jobs", content=json.dumps(at("lora", {"target_modules": [text]})), headers=JSON)
    assert modules.status_code == 422
    assert "lora.target_modules[0]" in {detail["param"] for detail in modules.json()["error"]["details"]}
    assert client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("body", [{HALF: 1}, {NUL: 1}, {"labels": {HALF: "x"}}, {"lora": {HALF: 1}}, {"name": 10**400}])
def test_odd_names_and_numbers_are_refused(client, body):
    answer = client.post("/v1/jobs", content=json.dumps(SPEC | body), headers=JSON)
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "invalid_request_error")


def test_deep_json_is_refused_wherever_anything_is_taken(client, submit):
    job_id = submit()["id"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    deep = "[" * 5000 + "]" * 5000
    for path, body in (("/v1/jobs", deep), (f"/v1/jobs/{job_id}/retry", f'{{"name": {deep}}}'), ("/v1/keys", deep)):
        answer = client.post(path, content=body, headers=JSON)
        assert answer.status_code in (400, 422), path


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"name": "\xff"}'])
def test_json_that_cannot_be_read_is_refused_with_the_reason(client, body):
    answer = client.post("/v1/jobs", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert "nested too deep, or is not in UTF-8" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/jobs/%00", "/v1/files/a%00b/content", "/v1/jobs?after=%00", "/v1/jobs?label.x=a%00"])
def test_an_address_with_a_nul_is_refused(client, path):
    answer = client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("path", ["..%2f..%2fsecret.key", "%ED%A0%80", "a" * 5000, "%2e%2e", "%5c%5c"])
@pytest.mark.parametrize("above", ["jobs", "files", "models", "jobs/job_1/artifacts", "links/x/job_1"])
def test_an_address_leads_to_nothing_but_what_has_it(client, above, path):
    answer = client.get(f"/v1/{above}/{path}")
    assert answer.status_code in (403, 404) and answer.json()["error"]["code"]


@pytest.mark.parametrize("name", ["../../secret.key.jsonl", "..\\..\\rows.jsonl", "a\x00\x1b\n.jsonl", "/etc/rows.jsonl"])
def test_the_name_of_an_upload_is_a_name_and_no_path(client, upload, name):
    kept = upload(name=name)["filename"]
    assert "/" not in kept and "\\" not in kept and kept.isprintable() and kept.endswith(".jsonl")


def test_a_compressed_body_is_not_unpacked(client, settings):
    import gzip

    bomb = gzip.compress(b" " * (64 << 20))
    answer = client.post("/v1/jobs", content=bomb, headers={"content-type": "application/json", "content-encoding": "gzip"})
    assert answer.status_code == 400
    packed = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl.gz", bomb)}}
    assert client.post("/v1/files", **packed).json()["error"]["param"] == "file"
