"""Pushes to a hub of the test's own, by the real client: whole, again, broken at every request, refused, overtaken."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.jobs.states import FailureCode
from worker.publishing import RepositoryFile, failures
from worker.publishing.failures import Target
from worker.publishing.push import push
from worker.stages import StageFailure

TOKEN = "hf_writer"
LARGE = bytes(range(256)) * 5000
CONTENT = {
    "README.md": b"---\nbase_model: org/base\n---\n\n# Card\n",
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": LARGE,
    "empty.txt": b"",
    "model-q8_0.gguf": b"GGUF" + LARGE,
    "small.gguf": b"GGUF",
}
SENT = {"adapter_model.safetensors", "model-q8_0.gguf", "small.gguf"}
"""What goes by the protocol of large files."""


@pytest.fixture
def files(tmp_path):
    for name, body in CONTENT.items():
        (tmp_path / name).write_bytes(body)
    described = [RepositoryFile.of(name, body) for name, body in CONTENT.items()]
    return [RepositoryFile(file.path, tmp_path / file.path, file.size, file.sha256) for file in described]


@pytest.fixture
def send(files):
    """Pushes; the result has the reports too."""

    def send(repo="me/tuned", *, private=True, token=TOKEN):
        reports = []
        pushed = push(
            Target(0, repo),
            files,
            token,
            lambda kind, **data: reports.append(data["message"]),
            private=private,
            message="Publish",
        )
        send.reports = reports
        return pushed

    return send


def refuse(send, *arguments, **more):
    with pytest.raises(StageFailure) as caught:
        send(*arguments, **more)
    return caught.value


def commits(hub, repo="me/tuned"):
    return len(hub.repositories["models", repo].commits)


def head(hub, repo="me/tuned"):
    return {name: body for name, body in hub.head(repo).items() if name != ".gitattributes"}


def list_requests(hub):
    """Those about the push; the client also asks, once a process, for things of its own."""
    return [request for request in hub.requests if re.search("me/tuned|/repos/create|/validate-yaml", request)]


def uploads(hub):
    return [request for request in hub.requests if request.startswith("PUT /content/upload")]


def test_a_first_push_makes_a_private_repository_with_one_commit(hub, send):
    pushed = send()
    repository = hub.repositories["models", "me/tuned"]
    assert head(hub) == CONTENT
    assert repository.private and commits(hub) == 2
    assert (pushed.commit, pushed.is_new) == (repository.branches["main"], True)
    assert pushed.url == f"{hub.url}/me/tuned"
    assert len(uploads(hub)) == len(SENT)


def test_a_second_push_makes_no_commit_and_sends_nothing(hub, send):
    first = send()
    hub.requests.clear()
    second = send()
    assert (second.commit, second.is_new) == (first.commit, False)
    assert commits(hub) == 2
    assert list_requests(hub) == ["GET /api/models/me/tuned"]


def test_only_what_has_changed_is_sent(hub, send, files, tmp_path):
    send()
    changed = b"GGUF" + LARGE[::-1]
    (tmp_path / "model-q8_0.gguf").write_bytes(changed)
    files[4] = RepositoryFile(files[4].path, files[4].content, len(changed), RepositoryFile.of("", changed).sha256)
    hub.add("models", "me/tuned", hub.head("me/tuned") | {"notes.txt": b"mine"}, private=True)
    hub.requests.clear()
    send()
    assert head(hub) == CONTENT | {"model-q8_0.gguf": changed, "notes.txt": b"mine"}
    assert len(uploads(hub)) == 1


def requests_of_a_clean_push():
    """Method and a pattern of the path of each, in order; tests of a clean push show that there are no others."""
    large = ["POST .*/preupload/", "POST .*/objects/batch", "PUT /content/upload/", "POST /verify/"]
    return [
        "GET /api/models/me/tuned$",
        "POST /api/repos/create",
        "GET /api/models/me/tuned$#2",
        *[f"{request}#{number}" for number in (1, 2) for request in large],
        "POST /api/validate-yaml",
        *[f"{request}#3" for request in large],
        "POST .*/commit/main",
    ]


def break_at(hub, request, **fault):
    """From the n-th request that matches on, all are broken: `pattern#n`."""
    pattern, _, number = request.partition("#")
    if int(number or 1) > 1:
        hub.befall(pattern, times=int(number) - 1, seconds=0)
    hub.befall(pattern, times=1, **fault)
    hub.befall(".", times=10**6, breaks="before")


def test_a_clean_push_makes_these_requests(hub, send):
    send()
    expected = [request.partition("#")[0] for request in requests_of_a_clean_push()]
    made = list_requests(hub)
    assert len(made) == len(expected)
    assert all(re.search(pattern, request) for pattern, request in zip(expected, made, strict=True))


@pytest.mark.parametrize("fault", [{"breaks": "before"}, {"breaks": "after"}, {"status": 500}], ids=["reset", "lost", "500"])
@pytest.mark.parametrize("request_", requests_of_a_clean_push())
def test_a_push_broken_at_any_request_goes_on_with_the_next_attempt(hub, send, monkeypatch, request_, fault):
    monkeypatch.setattr(failures, "PAUSES", ())
    break_at(hub, request_, **fault)
    failure = refuse(send)
    assert failure.code == FailureCode.HUB_UNAVAILABLE
    arrived = sum(len(repository.objects) for repository in hub.repositories.values())
    hub.faults.clear()
    hub.requests.clear()
    send()
    assert head(hub) == CONTENT
    assert commits(hub) == 2
    assert len(uploads(hub)) == len(SENT) - arrived


@pytest.mark.parametrize("fault", [{"breaks": "after"}, {"status": 503}], ids=["lost", "503"])
@pytest.mark.parametrize("request_", requests_of_a_clean_push())
def test_a_request_that_breaks_once_is_made_again(hub, send, request_, fault):
    pattern, _, number = request_.partition("#")
    hub.befall(pattern, times=int(number or 1) - 1)
    hub.befall(pattern, **fault)
    assert send().is_new
    assert head(hub) == CONTENT
    assert commits(hub) == 2
    assert sum(hub.pauses) > 0


def test_a_push_that_was_killed_sends_only_what_had_not_arrived(hub, send, files):
    program = """
import sys
from pathlib import Path
from worker.publishing import RepositoryFile
from worker.publishing.failures import Target
from worker.publishing.push import push
folder = Path(sys.argv[1])
def describe(path):
    body = path.read_bytes()
    return RepositoryFile(path.name, path, len(body), RepositoryFile.of("", body).sha256)
files = [describe(path) for path in sorted(folder.iterdir())]
push(Target(0, "me/tuned"), files, sys.argv[2], lambda *_, **__: None, private=True, message="Publish")
"""
    second, gone = threading.Event(), threading.Event()
    hub.befall("PUT /content/upload")
    hub.befall("PUT /content/upload", meanwhile=lambda: (second.set(), gone.wait()))
    folder = Path(files[0].content).parent
    process = subprocess.Popen([sys.executable, "-c", program, str(folder), TOKEN], env=os.environ | hub.environment)
    assert second.wait(120)
    process.kill()
    process.wait()
    hub.faults.clear()
    hub.requests.clear()
    send()
    assert head(hub) == CONTENT
    assert len(uploads(hub)) == 2


def test_a_moved_parent_is_looked_at_again_and_what_was_committed_there_stays(hub, send):
    moves = iter(range(3))

    def overtake():
        if "/commit/" in hub.requests[-1] and (number := next(moves, None)) is not None:
            files = hub.head("me/tuned") | {f"theirs-{number}.txt": b"x", "adapter_config.json": b"theirs"}
            hub.add("models", "me/tuned", files, private=True)

    hub.on_request = overtake
    send()
    assert head(hub) == CONTENT | {f"theirs-{number}.txt": b"x" for number in range(3)}
    assert commits(hub) == 5
    assert len(uploads(hub)) == len(SENT)
    assert sum("new commit" in message for message in send.reports) == 3


def test_a_repository_where_somebody_commits_all_the_time_is_given_up(hub, send):
    number = iter(range(1000))
    hub.on_request = lambda: (
        "/commit/" in hub.requests[-1]
        and hub.add("models", "me/tuned", {"theirs.txt": str(next(number)).encode()}, private=True)
    )
    failure = refuse(send)
    assert failure.code == FailureCode.HUB_UNAVAILABLE and "Somebody else" in failure.message


def test_a_storm_of_errors_is_sat_out(hub, send):
    for pattern in ("GET /api/models", "POST /api/validate", "PUT ", "POST .*/commit"):
        for status in (500, 503, 429):
            hub.befall(pattern, status=status)
    send()
    assert head(hub) == CONTENT and commits(hub) == 2


def test_the_pause_that_the_hub_asks_for_is_kept_within_reason(hub, send):
    hub.befall("POST .*/commit", status=429, retry_after=77)
    hub.befall("POST .*/commit", status=503, retry_after=10**6)
    send()
    assert hub.pauses == [77.0, failures.LONGEST_PAUSE]


def test_a_storm_without_end_is_given_up_after_some_minutes(hub, send):
    hub.befall("POST .*/commit", status=503, times=99)
    failure = refuse(send)
    assert (failure.code, failure.param) == (FailureCode.HUB_UNAVAILABLE, "publish[0].repo")
    assert "status 503" in failure.message
    assert hub.pauses == list(failures.PAUSES)


def test_a_revoked_token_is_refused_at_once(hub, send):
    hub.tokens.discard(TOKEN)
    failure = refuse(send)
    assert (failure.code, failure.param) == (FailureCode.HUB_UNAUTHORIZED, "publish[0].token")
    assert TOKEN not in failure.message + failure.hint
    assert hub.pauses == []


def test_a_token_revoked_half_way_is_refused_and_another_one_goes_on(hub, send):
    def revoke():
        if "/verify/" in hub.requests[-1]:
            hub.tokens.discard(TOKEN)

    hub.on_request = revoke
    failure = refuse(send)
    assert (failure.code, failure.param) == (FailureCode.HUB_UNAUTHORIZED, "publish[0].token")
    hub.on_request = lambda: None
    hub.enrol("hf_other", name="me", role="write")
    hub.repositories["models", "me/tuned"].readers.add("hf_other")
    hub.requests.clear()
    send(token="hf_other")
    assert head(hub) == CONTENT
    assert len(uploads(hub)) == len(SENT) - 1


@pytest.mark.parametrize("private", [False, True])
def test_a_repository_of_somebody_else_is_refused(hub, send, private):
    hub.add("models", "you/tuned", {"README.md": b"yours"}, private=private, readers={"hf_yours"} if private else None)
    failure = refuse(send, "you/tuned", private=private)
    assert (failure.code, failure.param) == (FailureCode.HUB_UNAUTHORIZED, "publish[0].repo")
    assert head(hub, "you/tuned") == {"README.md": b"yours"}
    assert uploads(hub) == []


def test_a_public_repository_is_refused_where_a_private_one_is_asked_for(hub, send):
    hub.add("models", "me/tuned", {"README.md": b"old"})
    failure = refuse(send)
    assert (failure.code, failure.param) == (FailureCode.INVALID_SPEC, "publish[0].private")
    assert head(hub) == {"README.md": b"old"}
    send(private=False)
    assert head(hub) == CONTENT


def test_a_card_that_the_hub_refuses_is_told(hub, send, files):
    card = b"---\nlicense: x\n---\n"
    files[0] = RepositoryFile.of("README.md", card)
    failure = refuse(send)
    assert failure.code == FailureCode.INVALID_SPEC and "base_model is missing" in failure.message


def test_the_words_of_the_hub_are_passed_on(hub, send):
    account = hub.accounts[TOKEN]
    hub.on_request = lambda: setattr(account, "role", "read" if "batch" in hub.requests[-1] else "write")
    failure = refuse(send)
    assert failure.code == FailureCode.HUB_UNAUTHORIZED
    assert "you must use a token with write access to this repository" in failure.message
