import hashlib

import pytest
from sample_rows import DATASET
from sqlmodel import select

from app.db import read_session
from app.models import Blob, StageRun


def post(client, *, name="rows.jsonl", content=DATASET, fields=None, **options):
    fields = {"purpose": "fine-tune"} if fields is None else fields
    return client.post("/v1/files", data=fields, files={"file": (name, content)} if name else None, **options)


def test_an_upload_is_shown_in_openais_shape_and_comes_back_byte_for_byte(client, upload):
    content = bytes(range(256)) * 20_000
    file = upload(content, "Some Rows.JSONL")
    assert file == {
        "id": file["id"],
        "object": "file",
        "bytes": len(content),
        "created_at": file["created_at"],
        "expires_at": None,
        "filename": "Some Rows.JSONL",
        "purpose": "fine-tune",
        "status": "uploaded",
        "status_details": None,
    }
    assert client.get(f"/v1/files/{file['id']}").json() == file
    answer = client.get(f"/v1/files/{file['id']}/content")
    assert answer.content == content
    assert answer.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert "Some%20Rows.JSONL" in answer.headers["content-disposition"]


def test_an_upload_queues_its_inspection(engine, upload):
    file = upload()
    with read_session(engine) as session:
        run = session.exec(select(StageRun)).one()
        assert (run.file_id, run.stage, run.resource, run.status) == (file["id"], "inspect", "cpu", "queued")


def test_equal_content_is_stored_once_and_stays_until_the_last_file_goes(client, engine, upload, storage):
    first, second = upload(), upload(name="again.jsonl")
    sha256 = hashlib.sha256(DATASET).hexdigest()
    with read_session(engine) as session:
        assert [blob.sha256 for blob in session.exec(select(Blob))] == [sha256]
    assert client.delete(f"/v1/files/{first['id']}").json() == {"id": first["id"], "object": "file", "deleted": True}
    assert client.get(f"/v1/files/{second['id']}/content").content == DATASET
    client.delete(f"/v1/files/{second['id']}")
    assert not storage.blob(sha256).exists()
    with read_session(engine) as session:
        assert session.exec(select(Blob)).all() == []
        assert session.exec(select(StageRun)).all() == []


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"name": "rows.txt"}, "file", "invalid_spec"),
        ({"name": "rows"}, "file", "invalid_spec"),
        ({"content": b""}, "file", "dataset_empty"),
        ({"fields": {}}, "purpose", "invalid_spec"),
        ({"fields": {"purpose": "batch"}}, "purpose", "invalid_spec"),
        ({"fields": {"purpose": "fine-tune", "porpose": "x"}}, "porpose", "invalid_spec"),
        ({"fields": {"purpose": "fine-tune", "expires_after[seconds]": "3600"}}, "expires_after[seconds]", "not_available"),
    ],
)
def test_a_wrong_form_is_refused_by_the_field_and_leaves_nothing(client, storage, change, param, code):
    answer = post(client, **change)
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)
    assert client.get("/v1/files").json()["data"] == []
    assert list(storage.upload("x").parent.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{}", "application/json"),
        (b"", "multipart/form-data; boundary=x"),
        (b"--x\r\nnot a header", "multipart/form-data; boundary=x"),
        (b"--y\r\n\r\n", "multipart/form-data; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.json"\r\n\r\n[1,',
            "multipart/form-data; boundary=x",
        ),
        (b"x", "multipart/form-data"),
    ],
)
def test_a_malformed_or_broken_off_body_is_400_and_leaves_nothing(client, storage, body, content_type):
    answer = client.post("/v1/files", content=body, headers={"content-type": content_type})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "invalid_request"
    assert list(storage.upload("x").parent.iterdir()) == []


def test_a_form_without_a_file_is_refused(client):
    answer = client.post("/v1/files", files={"purpose": (None, "fine-tune")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")


def test_two_files_in_one_form_are_refused(client):
    answer = client.post(
        "/v1/files", data={"purpose": "fine-tune"}, files=[("file", ("a.csv", b"a")), ("file", ("b.csv", b"b"))]
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")


def test_a_form_has_few_fields_and_short_ones(client, storage):
    for fields in ({f"f{n}": "x" for n in range(100)}, {"purpose": "x" * 10_001}):
        answer = client.post("/v1/files", data=fields, files={"file": ("a.csv", b"a")})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large"), answer.text
    long = b"--x\r\nContent-Disposition: form-data; name=" + b"a" * 100_000 + b"\r\n\r\nb\r\n--x--\r\n"
    answer = client.post("/v1/files", content=long, headers={"content-type": "multipart/form-data; boundary=x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert list(storage.upload("x").parent.iterdir()) == []


def test_a_path_in_the_name_is_cut_off(upload):
    assert upload(name="../../etc/rows.csv")["filename"] == "rows.csv"


def test_an_upload_above_the_limit_is_refused_before_it_is_read(client):
    answer = client.post(
        "/v1/files", content=b"", headers={"content-length": str(1 << 40), "content-type": "multipart/form-data; boundary=x"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_the_list_is_newest_first_and_paged(client, upload):
    ids = [upload()["id"] for _ in range(5)]
    newest = sorted(ids, reverse=True)
    first = client.get("/v1/files", params={"limit": 2}).json()
    assert [file["id"] for file in first["data"]] == newest[:2]
    assert (first["object"], first["has_more"], first["first_id"], first["last_id"]) == ("list", True, newest[0], newest[1])
    rest = client.get("/v1/files", params={"limit": 1000, "after": first["last_id"]}).json()
    assert [file["id"] for file in rest["data"]] == newest[2:]
    assert rest["has_more"] is False
    assert client.get("/v1/files", params={"purpose": "batch"}).json()["data"] == []


def test_the_report_is_pending_then_there_then_the_files_error(client, upload, inspected):
    file_id = upload()["id"]
    answer = client.get(f"/v1/files/{file_id}/report")
    assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (202, {"status": "pending"}, "1")
    inspected(file_id, report={"rows": 3, "rows_refused": 0})
    assert client.get(f"/v1/files/{file_id}/report").json() == {"rows": 3, "rows_refused": 0}
    inspected(file_id, problem="The file is no JSON.")
    assert client.get(f"/v1/files/{file_id}").json()["status_details"] == "The file is no JSON."
    answer = client.get(f"/v1/files/{file_id}/report")
    assert (answer.status_code, answer.json()["error"]["message"]) == (422, "The file is no JSON.")


def test_a_file_that_a_job_needs_cannot_be_deleted(client, submit):
    job = submit()
    path = f"/v1/files/{job['spec']['dataset']['file']}"
    answer = client.delete(path)
    assert (answer.status_code, answer.json()["error"]["code"], answer.headers["x-should-retry"]) == (
        409,
        "file_in_use",
        "false",
    )
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete(path).status_code == 200


@pytest.mark.parametrize("path", ["", "/content", "/report"])
def test_an_unknown_file_is_404(client, path):
    answer = client.get(f"/v1/files/file-nothing{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")


@pytest.mark.parametrize(("query", "param"), [("limit=0", "limit"), ("limt=5", "limt")])
def test_openai_shaped_routes_refuse_with_400(client, query, param):
    answer = client.get(f"/v1/files?{query}")
    assert (answer.status_code, answer.json()["error"]["param"], answer.json()["error"]["code"]) == (400, param, "invalid_spec")
