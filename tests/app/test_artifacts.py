import io
import re
import tarfile

import pytest

CONTENT = bytes(range(256)) * 8192
NAME = "gguf/model-q8_0.gguf"


@pytest.fixture
def artifact(submit, make_artifact):
    job_id = submit()["id"]
    return job_id, make_artifact(job_id, NAME, CONTENT), f"/v1/jobs/{job_id}/artifacts/{NAME}"


def test_the_list_tells_what_a_download_will_be(client, artifact):
    job_id, sha256, path = artifact
    page = client.get(f"/v1/jobs/{job_id}/artifacts").json()
    (entry,) = page["data"]
    assert {key: entry[key] for key in ("object", "name", "kind", "bytes", "sha256", "verification", "url")} == {
        "object": "artifact",
        "name": NAME,
        "kind": "gguf",
        "bytes": len(CONTENT),
        "sha256": sha256,
        "verification": None,
        "url": f"http://127.0.0.1:8000{path}",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", entry["created_at"])
    assert client.get(f"/v1/jobs/{job_id}").json()["artifacts"] == [entry]
    assert client.get(entry["url"]).content == CONTENT


def test_urls_begin_with_the_public_one(client, artifact, monkeypatch):
    monkeypatch.setattr(client.app.state.settings, "public_url", "https://tune.example/base/")
    (entry,) = client.get(f"/v1/jobs/{artifact[0]}/artifacts").json()["data"]
    assert entry["url"] == f"https://tune.example/base{artifact[2]}"


def test_a_download_is_named_tagged_and_not_sniffed(client, artifact):
    answer = client.get(artifact[2])
    assert answer.content == CONTENT
    assert answer.headers["etag"] == f'"{artifact[1]}"'
    assert answer.headers["content-disposition"] == 'attachment; filename="model-q8_0.gguf"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["accept-ranges"] == "bytes"


def test_head_answers_the_same_headers_and_no_body(client, artifact):
    full, head = client.get(artifact[2]), client.head(artifact[2])
    assert head.content == b""
    own = {"x-request-id", "date"}
    assert {k: v for k, v in head.headers.items() if k not in own} == {k: v for k, v in full.headers.items() if k not in own}


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=100000-", 100000, None), ("bytes=-5", -5, None), ("bytes=5-99999999", 5, None)],
)
def test_a_range_is_206(client, artifact, asked, start, stop):
    answer = client.get(artifact[2], headers={"range": asked})
    assert (answer.status_code, answer.content) == (206, CONTENT[start:stop])


def test_a_range_beyond_the_end_is_416(client, artifact):
    answer = client.get(artifact[2], headers={"range": f"bytes={len(CONTENT)}-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"
    assert answer.json()["error"]["code"] == "range_not_satisfiable"


@pytest.mark.parametrize("asked", ["bytes=9-2", "bytes=x", "lines=1-2", "0-9"])
def test_what_is_no_range_is_ignored(client, artifact, asked):
    answer = client.get(artifact[2], headers={"range": asked})
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize("form", ['"{}"', 'W/"{}"', '"other", "{}"', "*"])
def test_a_client_that_has_it_gets_304(client, artifact, form):
    answer = client.get(artifact[2], headers={"if-none-match": form.format(artifact[1])})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == f'"{artifact[1]}"'


def test_a_range_of_another_version_is_the_whole_file(client, artifact):
    fresh = {"range": "bytes=0-9", "if-range": f'"{artifact[1]}"'}
    stale = {"range": "bytes=0-9", "if-range": '"other"'}
    assert client.get(artifact[2], headers=fresh).status_code == 206
    assert client.get(artifact[2], headers=stale).content == CONTENT


@pytest.mark.parametrize("name", ["gguf/other.gguf", "../../tunesmith.db", "..%2F..%2Ftunesmith.db", "%2Fetc%2Fpasswd", "gguf"])
def test_a_name_that_is_none_of_the_jobs_artifacts_is_404(client, artifact, name):
    answer = client.get(f"/v1/jobs/{artifact[0]}/artifacts/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in ("artifact_not_found", "not_found", "job_not_found")


@pytest.fixture
def many(submit, make_artifact):
    job_id = submit()["id"]
    names = {"merged/config.json": b"{}", "merged/" + "deep/" * 40 + "x": b"x" * 700, "adapter/a": b"", NAME: CONTENT}
    for name, content in names.items():
        make_artifact(job_id, name, content)
    return job_id, names


def unpack(answer) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        assert {member.mode for member in archive} == {0o644}
        return {member.name: archive.extractfile(member).read() for member in archive}


@pytest.mark.parametrize("prefix", ["", "merged/", "gguf"])
def test_a_folder_is_one_tar_file_of_known_length(client, many, prefix):
    job_id, names = many
    answer = client.get(f"/v1/jobs/{job_id}/artifacts.tar", params={"prefix": prefix} if prefix else {})
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert unpack(answer) == {name: content for name, content in names.items() if name.startswith(prefix)}
    assert answer.headers["content-disposition"] == f'attachment; filename="{prefix.strip("/") or job_id}.tar"'


def test_the_head_of_a_tar_file_is_its_get_without_the_content(client, many):
    path = f"/v1/jobs/{many[0]}/artifacts.tar?prefix=merged/"
    full, head = client.get(path), client.head(path)
    own = {"x-request-id", "date"}
    assert head.content == b""
    assert {k: v for k, v in head.headers.items() if k not in own} == {k: v for k, v in full.headers.items() if k not in own}
    again = client.get(path, headers={"if-none-match": full.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_an_empty_tar_file_is_404(client, many):
    answer = client.get(f"/v1/jobs/{many[0]}/artifacts.tar?prefix=nothing/")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "artifact_not_found")
