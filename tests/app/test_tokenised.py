import pytest
from sqlmodel import select

from app.db import read_session, write_session
from app.files import tokenised
from app.jobs import recovery, stage_runs
from app.jobs.states import Resource, Stage, StageStatus
from app.models import File, StageRun

MODEL = "smollm2-135m-instruct"


@pytest.fixture
def file_id(upload, inspected):
    file_id = upload()["id"]
    inspected(file_id, report={"rows": 3, "rows_refused": 0, "duplicates": 1, "container": "jsonl"})
    return file_id


@pytest.fixture
def finish(engine):
    """What a worker does with the run that waits: ends it well, with values, or badly, with an error."""

    def finish(stage, *, values=None, error=None):
        with write_session(engine) as session:
            while run := stage_runs.claim(session, Resource.CPU, "wrk_test", 60):
                if run.stage is stage:
                    break
            status = StageStatus.SUCCEEDED if values else StageStatus.FAILED
            outputs = {"values": values, "files": []} if values else None
            assert stage_runs.finish(session, run.id, run.fence, status, outputs=outputs, error=error)
            if error:
                recovery.fail(session, recovery.load_owner(session, run), run, error)
            return run.overrides

    return finish


def runs_of(engine, stage):
    with read_session(engine) as session:
        return session.exec(select(StageRun).where(StageRun.stage == stage)).all()


def test_a_report_for_a_base_model_is_made_once_and_then_found(client, engine, file_id, finish):
    path = f"/v1/files/{file_id}/report?base_model={MODEL}&max_seq_length=512"
    for _ in range(2):
        answer = client.get(path)
        assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (202, {"status": "pending"}, "1")
    asked = finish(Stage.MEASURE, values={"report": {"tokens": 99, "duplicates": 2}})
    assert asked["spec"]["training"]["max_seq_length"] == 512
    assert asked["spec"]["dataset"]["file"] == file_id
    assert asked["spec"]["method"] == "sft"
    expected = {"rows": 3, "rows_refused": 0, "duplicates": 2, "container": "jsonl", "tokens": 99}
    assert (client.get(path).status_code, client.get(path).json()) == (200, expected)
    assert len(runs_of(engine, Stage.MEASURE)) == 1
    assert client.get(path.replace("512", "513")).status_code == 202
    assert client.get(f"{path}&method=cpt").status_code == 202
    assert [run.attempt for run in runs_of(engine, Stage.MEASURE)] == [1, 2, 3]
    assert client.get(f"{path}&method=ppo").json()["error"]["param"] == "method"


def test_a_preview_is_of_one_row(client, engine, file_id, finish):
    path = f"/v1/files/{file_id}/preview?base_model={MODEL}&row=2"
    assert client.get(path).status_code == 202
    assert finish(Stage.PREVIEW, values={"preview": {"row": 2, "text": "x"}})["row"] == 2
    assert client.get(path).json() == {"row": 2, "text": "x"}
    assert client.get(path.replace("row=2", "row=1")).status_code == 202


def test_what_the_worker_says_is_passed_on(client, engine, file_id):
    path = f"/v1/files/{file_id}/report?base_model={MODEL}"
    client.get(path)
    with write_session(engine) as session:
        [run] = session.exec(select(StageRun).where(StageRun.stage == Stage.MEASURE)).all()
        run.outputs = {"progress": "Tokenising: 7 of 9 rows"}
        session.add(run)
    assert client.get(path).json() == {"status": "pending", "progress": "Tokenising: 7 of 9 rows"}


def test_a_failure_is_told_and_leaves_the_file_as_it_was(client, engine, file_id, finish, monkeypatch):
    path = f"/v1/files/{file_id}/preview?base_model={MODEL}&row=9"
    client.get(path)
    finish(Stage.PREVIEW, error={"code": "invalid_spec", "message": "No row 9.", "hint": None, "param": "row"})
    error = client.get(path).json()["error"]
    assert (error["code"], error["param"], error["message"]) == ("invalid_spec", "row", "No row 9.")
    assert client.get(f"/v1/files/{file_id}").json()["status"] == "processed"
    with monkeypatch.context() as patch:
        patch.setattr(tokenised, "RETRY_AFTER", -tokenised.RETRY_AFTER)
        assert client.get(path).status_code == 202
    finish(Stage.PREVIEW, error={"code": "internal", "message": "Broken.", "hint": "Look.", "param": None})
    answer = client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


def test_a_lost_attempt_is_queued_again_with_what_was_asked(client, engine, file_id):
    for row in (0, 1):
        client.get(f"/v1/files/{file_id}/preview?base_model={MODEL}&row={row}")
    with write_session(engine) as session:
        first = session.exec(select(StageRun).where(StageRun.stage == Stage.PREVIEW, StageRun.attempt == 1)).one()
        for _ in range(recovery.MAX_DEATHS):
            run = stage_runs.find_of_file(session, session.get_one(File, file_id), Stage.PREVIEW, first.key)
            assert run.overrides["row"] == 0
            run.status, run.error = StageStatus.FAILED, recovery.lost(run, "Gone.")
            session.add(run)
            session.flush()
            recovery.recover(session, run)
    attempts = [(run.attempt, run.overrides["row"], run.status) for run in runs_of(engine, Stage.PREVIEW)]
    assert [(attempt, row) for attempt, row, _ in attempts] == [(1, 0), (2, 1), (3, 0), (4, 0)]
    assert attempts[-1][2] is StageStatus.FAILED


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("report?base_model=nothing", "base_model"),
        (f"report?base_model={MODEL}&max_seq_length=3", "max_seq_length"),
        (f"report?base_model={MODEL}&format=xml", "format"),
        (f"report?base_model={MODEL}&validation_file=file-nothing", "file_id"),
        (f"report?base_model={MODEL}&max_lenght=3", "max_lenght"),
        (f"preview?base_model={MODEL}&row=-1", "row"),
        (f"preview?base_model={MODEL}&long_rows=x", "long_rows"),
    ],
)
def test_wrong_options_are_refused_by_name(client, file_id, engine, query, param):
    answer = client.get(f"/v1/files/{file_id}/{query}")
    assert answer.status_code in (404, 422), answer.text
    assert answer.json()["error"]["param"] == param
    assert runs_of(engine, Stage.MEASURE) == runs_of(engine, Stage.PREVIEW) == []


def test_a_preview_needs_a_model(client, file_id):
    answer = client.get(f"/v1/files/{file_id}/preview")
    assert answer.status_code == 422
    assert "base_model" in answer.json()["error"]["message"]


def test_a_file_that_cannot_be_read_has_neither(client, upload, inspected):
    file_id = upload()["id"]
    inspected(file_id, problem="The file is no JSON.")
    for name in ("report", "preview"):
        assert client.get(f"/v1/files/{file_id}/{name}?base_model={MODEL}").json()["error"]["code"] == "dataset_invalid"
