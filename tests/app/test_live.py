"""Through a real server and real sockets: streams, aborted requests, commits before answers."""

import socket
import threading
import time
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest
import uvicorn
from sqlalchemy import text

from app.db import READERS, write_session
from app.jobs import repository, stream
from app.jobs.states import EventType
from app.main import create_app
from app.settings import Settings


@pytest.fixture
def server(environment, monkeypatch):
    """A server with a database and storage of its own."""
    monkeypatch.setenv("TUNESMITH_REAPER_SECONDS", "600")
    settings = Settings()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        service = create_app(settings)
        server = uvicorn.Server(uvicorn.Config(service, timeout_graceful_shutdown=1, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.service = service
        yield server
        server.should_exit = True
        thread.join()


@pytest.fixture
def http(server):
    with httpx2.Client(base_url=server.url, timeout=120) as http:
        yield http


@pytest.fixture
def job_id(http):
    spec = {"base_model": "smollm2-135m-instruct", "dataset": {"hub": {"repo": "a/b"}}}
    return http.post("/v1/jobs", json=spec).raise_for_status().json()["id"]


@pytest.fixture
def looks(monkeypatch):
    """When the server looked for a job's news."""
    looks, look = [], stream.look

    def look_and_count(*arguments):
        looks.append(time.monotonic())
        return look(*arguments)

    monkeypatch.setattr(stream, "look", look_and_count)
    return looks


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stream_brings_what_happens_and_ends_with_the_job(http, server, job_id):
    with write_session(server.service.state.engine) as session:
        repository.get(session, job_id).progress = {"step": 1, "total_steps": 2}
    seen: list[str] = []
    with http.stream("GET", f"/v1/jobs/{job_id}/events?stream=true") as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                seen.append(line)
            if line == "event: stage.progress":
                httpx2.post(f"{server.url}/v1/jobs/{job_id}/cancel").raise_for_status()
    assert seen == ["event: job.queued", "event: stage.progress", "event: job.cancelled"]


def test_an_open_stream_holds_no_connection_to_the_database_and_ends_with_its_client(http, server, job_id, looks):
    engine = server.service.state.engine
    with http.stream("GET", f"/v1/jobs/{job_id}/events?stream=true") as answer:
        lines = answer.iter_lines()
        next(lines)
        wait_until(lambda: len(looks) > 2)
        wait_until(lambda: engine.pool.checkedout() == READERS[engine].pool.checkedout() == 0)
    wait_until(lambda: not server.service.state.feeds.by_job)
    made = len(looks)
    time.sleep(2.5 * stream.LOOK_SECONDS)
    assert len(looks) <= made + 1


def test_many_clients_of_a_job_cost_as_many_looks_as_one_and_miss_nothing(http, server, job_id, looks):
    """They join and leave at any time; one breaks off in the middle and takes up again where it was."""
    engine = server.service.state.engine
    path = f"/v1/jobs/{job_id}/events?stream=true"
    seen: list[list[str]] = [[] for _ in range(8)]

    def follow(ids, stop_after=None, last=None):
        with http.stream("GET", path, headers={"last-event-id": last} if last else {}) as answer:
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    ids.append(line)
                    if len(ids) == stop_after:
                        return

    threads = [threading.Thread(target=follow, args=[ids, 3 if ids is seen[0] else None]) for ids in seen]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(seen))
    before = len(looks)
    for number in range(6):
        with write_session(engine) as session:
            repository.record_event(session, repository.get(session, job_id), EventType.JOB_WARNING, f"{number}")
        time.sleep(0.4)
    wait_until(lambda: len(looks) > before)
    pauses = [later - earlier for earlier, later in pairwise(looks[before - 1 :])]
    assert pauses and min(pauses) >= 0.99 * stream.LOOK_SECONDS
    threads[0].join()
    httpx2.post(f"{server.url}/v1/jobs/{job_id}/cancel").raise_for_status()
    for thread in threads[1:]:
        thread.join()
    follow(seen[0], last=seen[0][-1].removeprefix("id: "))
    listed = [f"id: {event['id']}" for event in http.get(f"/v1/jobs/{job_id}/events").json()["data"]]
    assert len(listed) == 8
    assert seen == [listed] * 8
    wait_until(lambda: not server.service.state.feeds.by_job)


def test_what_was_answered_is_committed(http, server, job_id):
    """The answer comes after the commit: another connection sees the job at once, every time."""
    for _ in range(20):
        spec = {"base_model": "smollm2-135m-instruct", "dataset": {"hub": {"repo": "a/b"}}}
        made = http.post("/v1/jobs", json=spec).json()["id"]
        with server.service.state.engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM job WHERE id = :id"), {"id": made}).scalar_one() == 1


def test_an_upload_that_breaks_off_leaves_nothing(http, server):
    host, port = server.url.removeprefix("http://").split(":")
    uploads: Path = server.service.state.storage.root / "uploads"
    with socket.create_connection((host, int(port))) as connection:
        head = "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n"
        head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        part = '--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + "x" * 3_000_000
        connection.sendall((head + part).encode())
        wait_until(lambda: uploads.is_dir() and any(uploads.iterdir()))
    wait_until(lambda: not any(uploads.iterdir()))
    assert http.get("/v1/files").json()["data"] == []


def test_a_large_upload_comes_back_whole(http, tmp_path):
    content = bytes(range(251)) * 80_000
    answer = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a.parquet", content)})
    file = answer.raise_for_status().json()
    assert file["bytes"] == len(content)
    assert http.get(f"/v1/files/{file['id']}/content").content == content


def test_a_stream_where_nothing_happens_shows_that_it_lives(http, job_id, monkeypatch):
    monkeypatch.setattr("app.jobs.stream.HEARTBEAT_SECONDS", 0.5)
    with http.stream("GET", f"/v1/jobs/{job_id}/events?stream=true") as answer:
        assert next(line for line in answer.iter_lines() if line.startswith(":")) == ": ping"
