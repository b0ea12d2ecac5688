import pytest

from client.api import ApiError, Client, ClientError, Unreachable
from client.download import TRIES, download


def fetch(service, folder, **changes):
    with Client(service.url) as client:
        return download(client, "job_1", service.artifact | changes, folder)


def parts(folder):
    return [path.name for path in folder.rglob("*.part")]


def test_broken_connections_are_taken_up_where_they_broke(service, tmp_path):
    service.breaks = [1000, 50_000]
    path = fetch(service, tmp_path)
    assert path == tmp_path / "gguf" / "model.gguf"
    assert path.read_bytes() == service.content
    assert service.starts == [0, 1000, 51_000]
    assert parts(tmp_path) == []


def test_later_call_goes_on_with_what_an_earlier_one_left(service, tmp_path):
    service.breaks = [7000] + [0] * TRIES
    with pytest.raises(Unreachable):
        fetch(service, tmp_path)
    assert len(parts(tmp_path)) == 1
    service.starts.clear()
    assert fetch(service, tmp_path).read_bytes() == service.content
    assert service.starts == [7000]


def test_server_without_ranges_is_read_from_the_start(service, tmp_path):
    service.breaks, service.ranges = [1000], False
    assert fetch(service, tmp_path).read_bytes() == service.content
    assert service.starts == [0, 0]


def test_wrong_bytes_get_no_name_and_are_removed(service, tmp_path):
    service.content = b"x" * len(service.content)
    with pytest.raises(ClientError, match="download it again"):
        fetch(service, tmp_path)
    assert list((tmp_path / "gguf").iterdir()) == []


def test_part_of_another_file_of_the_same_name_is_not_continued(service, tmp_path):
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / f"model.gguf.{'0' * 12}.part").write_bytes(b"another job's bytes")
    assert fetch(service, tmp_path).read_bytes() == service.content
    assert service.starts == [0]


def test_whole_file_is_not_fetched_again(service, tmp_path):
    fetch(service, tmp_path)
    fetch(service, tmp_path)
    assert service.starts == [0]


def test_short_file_ends_with_a_sentence(service, tmp_path):
    with pytest.raises(ClientError, match="sends only"):
        fetch(service, tmp_path, bytes=len(service.content) + 1)


@pytest.mark.parametrize("name", ["../model.gguf", "/etc/model.gguf", "gguf/../../model.gguf"])
def test_name_that_leads_out_of_the_folder_is_refused(service, tmp_path, name):
    with pytest.raises(ClientError, match="outside"):
        fetch(service, tmp_path / "job", name=name)
    assert service.starts == []


def test_refusal_is_passed_on(service, tmp_path):
    error = {"message": "No artifact.", "type": "invalid_request_error", "param": None, "code": "not_found"}
    service.answers["/v1/jobs/job_1/artifacts/gguf/model.gguf"] = [(404, {"error": error})]
    with pytest.raises(ApiError, match="No artifact") as refusal:
        fetch(service, tmp_path)
    assert (refusal.value.status, refusal.value.code) == (404, "not_found")
