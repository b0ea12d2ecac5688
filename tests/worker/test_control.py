"""Pausing, resuming, retrying and time limits, with stage processes that do as they are told, or not."""

import json
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from sqlmodel import col, select
from supervising import Supervised, wait_until

from app.db import read_session, write_session
from app.errors import InvalidSpec
from app.jobs import service, stage_runs
from app.jobs.states import EventType, JobStatus, Resource, Stage, StageStatus
from app.models import Artifact, StageRun

SAVES_WHEN_ASKED = """
    if stage == "train":
        saved = [int(path.name[5:]) for folder in inputs.earlier for path in folder.glob("checkpoints/step-*")]
        step = max(saved, default=0)
        with report.holding_stop():
            report("progress", step=step)
            while step < 3 or not (saved or (inputs.models_dir / "go").exists()):
                if report.stop_requested:
                    (out / "checkpoints" / f"step-{step + 1}").mkdir(parents=True)
                    report("checkpoint", step=step + 1, bytes=1, metrics={})
                    raise StageStopped
                step += bool(saved)
                time.sleep(0.02)
        values["went_on_from"] = max(saved, default=0)
"""


def control(supervised: Supervised, action: str, job_id: str) -> None:
    with write_session(supervised.engine) as session:
        getattr(service, action)(session, job_id)


def retry(supervised: Supervised, job_id: str, **overrides: object) -> Stage | None:
    """As the endpoint does it; answers the stage that it starts from."""
    with read_session(supervised.engine, "default") as looking:
        spec = service.plan_retry(looking, supervised.settings, job_id, dict(overrides))
    with write_session(supervised.engine) as session:
        return service.retry(session, job_id, spec, dict(overrides))[0].stage


def statuses(supervised: Supervised, job_id: str) -> list[tuple[Stage, StageStatus]]:
    return [(run.stage, run.status) for run in supervised.runs(job_id)]


@pytest.fixture
def paused(supervised: Supervised) -> str:
    """A job that was paused while it trained."""
    supervised.script(SAVES_WHEN_ASKED)
    job_id = supervised.submit()
    supervised.work(Resource.CPU)
    with supervised.working(Resource.GPU):
        wait_until(lambda: (supervised.job(job_id).progress or {}).get("step") == 0)
        control(supervised, "pause", job_id)
    return job_id


def test_a_pause_lets_the_stage_save_and_leaves_the_worker_free(supervised: Supervised, paused: str) -> None:
    job = supervised.job(paused)
    assert (job.status, job.stage, job.pause_requested_at) == (JobStatus.PAUSED, Stage.TRAIN, None)
    assert statuses(supervised, paused)[-1] == (Stage.TRAIN, StageStatus.CANCELLED)
    assert [event.type for event in supervised.events(paused)][-2:] == [EventType.JOB_CHECKPOINT, EventType.JOB_PAUSED]
    assert not supervised.waiting()


def test_a_resumed_job_goes_on_from_what_it_saved(supervised: Supervised, paused: str) -> None:
    control(supervised, "resume", paused)
    supervised.work()
    job, train = supervised.job(paused), supervised.runs(paused)[-1]
    assert (job.status, train.attempt) == (JobStatus.SUCCEEDED, 2)
    assert train.outputs and train.outputs["values"] == {"went_on_from": 1}
    assert [event.type for event in supervised.events(paused)].count(EventType.JOB_RESUMED) == 1


def test_a_paused_job_survives_pausing_again_and_again(supervised: Supervised, paused: str) -> None:
    for _ in range(4):
        control(supervised, "resume", paused)
        control(supervised, "pause", paused)
    control(supervised, "resume", paused)
    supervised.work()
    assert supervised.job(paused).status is JobStatus.SUCCEEDED


def test_a_stage_that_ends_while_a_pause_is_asked_for_is_the_last_one_for_now(supervised: Supervised) -> None:
    supervised.script("""
        with report.holding_stop():
            report("progress", step=1)
            while stage == "prepare" and not report.stop_requested:
                time.sleep(0.02)
    """)
    job_id = supervised.submit()
    with supervised.working():
        wait_until(lambda: supervised.job(job_id).progress)
        control(supervised, "pause", job_id)
    job = supervised.job(job_id)
    assert (job.status, job.stage, statuses(supervised, job_id)) == (
        JobStatus.PAUSED,
        Stage.TRAIN,
        [(Stage.PREPARE, StageStatus.SUCCEEDED)],
    )
    control(supervised, "resume", job_id)
    supervised.work()
    assert supervised.job(job_id).status is JobStatus.SUCCEEDED
    assert [run.attempt for run in supervised.runs(job_id)] == [1, 1]


def test_a_pause_that_is_taken_back_too_late_costs_an_attempt_and_nothing_else(supervised: Supervised) -> None:
    supervised.script("""
        with report.holding_stop():
            report("progress", step=1)
            first = stage == "prepare" and attempt == 1
            while first and not report.stop_requested:
                time.sleep(0.02)
            if first:
                report("progress", step=2)
                while not (inputs.models_dir / "go").exists():
                    time.sleep(0.02)
                raise StageStopped
    """)
    job_id = supervised.submit()
    with supervised.working():
        wait_until(lambda: supervised.job(job_id).progress)
        control(supervised, "pause", job_id)
        wait_until(lambda: supervised.job(job_id).progress["step"] == 2)
        control(supervised, "resume", job_id)
        (supervised.scripts / "go").touch()
    supervised.work()
    assert supervised.job(job_id).status is JobStatus.SUCCEEDED
    assert EventType.JOB_PAUSED not in [event.type for event in supervised.events(job_id)]


def test_cancelling_does_not_wait_for_a_pause(supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    supervised.script("""
        with report.holding_stop():
            report("progress", step=1)
            while not report.stop_requested:
                time.sleep(0.02)
            report("progress", step=2)
            time.sleep(600)
    """)
    monkeypatch.setattr("worker.runner.GRACE_SECONDS", {"stopped because the job was cancelled": 0.2} | long_grace())
    job_id = supervised.submit()
    with supervised.working():
        wait_until(lambda: supervised.job(job_id).progress)
        control(supervised, "pause", job_id)
        wait_until(lambda: supervised.job(job_id).progress["step"] == 2)
        control(supervised, "cancel", job_id)
    assert supervised.job(job_id).status is JobStatus.CANCELLED


def long_grace() -> dict[str, float]:
    from worker.runner import GRACE_SECONDS

    return {ending: 600.0 for ending in GRACE_SECONDS if "cancelled" not in ending}


FAILS_ONCE = """
    values["made_by"] = attempt
    name = {"train": "adapter/a", "merge": "merged/m", "convert": "gguf/" + (spec.name or "x")}.get(stage)
    if stage == "verify":
        values["verification"] = {}
    if name:
        (out / "file").write_text(json.dumps([stage, attempt, spec.training.learning_rate]))
        files.append(OutputFile.of(out, out / "file", name=name, kind=name.split("/")[0]))
    if stage == "convert" and not (inputs.models_dir / "go").exists():
        raise StageFailure(FailureCode.CONVERSION_FAILED, "No.", patch={"exports": [{"kind": "merged"}]})
"""


@pytest.fixture
def failed(supervised: Supervised) -> str:
    """A job whose conversion failed."""
    supervised.script(FAILS_ONCE)
    exports = [{"kind": "adapter"}, {"kind": "merged"}, {"kind": "gguf"}]
    job_id = supervised.submit(exports=exports, base_model="smollm2-135m-instruct")
    supervised.work()
    assert supervised.job(job_id).status is JobStatus.FAILED
    (supervised.scripts / "go").touch()
    return job_id


def read_artifacts(supervised: Supervised, job_id: str) -> dict[str, list]:
    with supervised.session() as session:
        made = col(Artifact.kind).not_in(["manifest", "receipt"])
        artifacts = session.exec(select(Artifact).where(Artifact.job_id == job_id, made)).all()
    return {row.name: json.loads(supervised.storage.blob(row.blob_sha256).read_text()) for row in artifacts}


def attempts_of(supervised: Supervised, job_id: str) -> list[str]:
    return [f"{run.stage} {run.attempt}" for run in supervised.runs(job_id)[4:]]


def test_a_retry_starts_at_the_stage_that_failed(supervised: Supervised, failed: str) -> None:
    assert retry(supervised, failed) is Stage.CONVERT
    supervised.work()
    assert supervised.job(failed).status is JobStatus.SUCCEEDED
    assert attempts_of(supervised, failed) == ["convert 2", "verify 1"]
    assert set(read_artifacts(supervised, failed)) == {"adapter/a", "merged/m", "gguf/x"}


@pytest.mark.parametrize(
    ("overrides", "first"),
    [
        ({"name": "other"}, Stage.CONVERT),
        ({"priority": 5, "purpose": "why not", "labels": {"a": "b"}, "checkpoints": {"keep": 9}}, Stage.CONVERT),
        ({"exports": [{"kind": "adapter"}, {"kind": "gguf"}]}, Stage.CONVERT),
        ({"exports": [{"kind": "adapter"}, {"kind": "merged"}, {"kind": "gguf", "quantization": "f16"}]}, Stage.CONVERT),
        ({"training": {"learning_rate": 1e-3}}, Stage.TRAIN),
        ({"lora": {"r": 8}}, Stage.TRAIN),
        ({"training": {"max_seq_length": 512}}, Stage.PREPARE),
        ({"dataset": {"seed": 1}}, Stage.PREPARE),
        ({"dataset": {"long_rows": "cut"}}, Stage.PREPARE),
    ],
)
def test_a_retry_starts_at_the_first_stage_that_an_override_changes(
    supervised: Supervised, failed: str, overrides: dict, first: Stage
) -> None:
    assert retry(supervised, failed, **overrides) is first
    supervised.work()
    assert supervised.job(failed).status is JobStatus.SUCCEEDED
    stages = [Stage.PREPARE, Stage.TRAIN, Stage.MERGE, Stage.CONVERT]
    assert attempts_of(supervised, failed) == [f"{stage} 2" for stage in stages[stages.index(first) :]] + ["verify 1"]


def test_what_was_made_with_other_settings_goes_when_the_retry_begins(supervised: Supervised, failed: str) -> None:
    retry(supervised, failed, training={"learning_rate": 1e-3})
    assert read_artifacts(supervised, failed) == {}
    supervised.work()
    assert read_artifacts(supervised, failed)["adapter/a"] == ["train", 2, 1e-3]


def test_a_retry_without_the_export_that_failed_ends_with_what_there_is(supervised: Supervised, failed: str) -> None:
    error = supervised.job(failed).error
    assert error and retry(supervised, failed, **error["patch"]) is Stage.TRAIN, "the adapter is no artifact any more"
    supervised.work()
    assert supervised.job(failed).status is JobStatus.SUCCEEDED
    assert set(read_artifacts(supervised, failed)) == {"adapter/a", "merged/m"}


def test_deaths_before_a_retry_do_not_count(supervised: Supervised) -> None:
    supervised.script("""
        if stage == "prepare" and attempt < 6:
            os._exit(1)
    """)
    job_id = supervised.submit(base_model="smollm2-135m-instruct")
    supervised.work()
    assert (supervised.job(job_id).error or {})["code"] == "worker_lost"
    assert retry(supervised, job_id) is Stage.PREPARE
    supervised.work()
    assert [run.attempt for run in supervised.runs(job_id) if run.stage is Stage.PREPARE] == [1, 2, 3, 4, 5, 6]


@pytest.mark.provokes("timeout")
def test_a_job_that_runs_too_long_saves_and_fails_with_the_time_that_it_would_need(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervised.script(SAVES_WHEN_ASKED)
    job_id = supervised.submit(max_runtime_seconds=3600, base_model="smollm2-135m-instruct")
    supervised.work(Resource.CPU)
    clock = SimpleNamespace(passed=0.0, monotonic=lambda: time.monotonic() + clock.passed, sleep=time.sleep)
    monkeypatch.setattr("worker.runner.time", clock)
    with supervised.working(Resource.GPU):
        wait_until(lambda: (supervised.job(job_id).progress or {}).get("step") == 0)
        clock.passed = 3600.0
    job = supervised.job(job_id)
    assert job.status is JobStatus.FAILED and job.error
    assert (job.error["code"], job.error["param"], job.error["patch"]) == (
        "timeout", "max_runtime_seconds", {"max_runtime_seconds": 7200},
    )  # fmt: skip
    assert EventType.JOB_CHECKPOINT in [event.type for event in supervised.events(job_id)]
    assert retry(supervised, job_id, max_runtime_seconds=7200) is Stage.TRAIN
    supervised.work()
    assert supervised.job(job_id).status is JobStatus.SUCCEEDED
    outputs = supervised.runs(job_id)[-1].outputs
    assert outputs and outputs["values"]["went_on_from"] == 1


def test_a_retry_within_the_time_that_is_used_up_is_refused(supervised: Supervised, failed: str) -> None:
    let_an_hour_pass(supervised, failed)
    with pytest.raises(InvalidSpec, match="used up this time"):
        retry(supervised, failed, max_runtime_seconds=3600)
    assert retry(supervised, failed, max_runtime_seconds=7200) is Stage.CONVERT


def let_an_hour_pass(supervised: Supervised, job_id: str) -> None:
    """As if the job's first attempt had taken an hour longer."""
    with write_session(supervised.engine) as session:
        first = stage_runs.attempts(session, job_id)[0]
        first.started_at = (first.started_at or first.created_at) - timedelta(hours=1)


def test_a_job_whose_time_is_over_before_its_next_stage_does_not_start_it(supervised: Supervised) -> None:
    supervised.script("")
    job_id = supervised.submit(max_runtime_seconds=3600)
    supervised.work(Resource.CPU)
    let_an_hour_pass(supervised, job_id)
    supervised.work(Resource.GPU)
    job = supervised.job(job_id)
    assert (job.status, (job.error or {})["code"]) == (JobStatus.FAILED, "timeout")
    assert [run.stage for run in supervised.runs(job_id)] == [Stage.PREPARE, Stage.TRAIN]
    assert not supervised.storage.attempt_folder(job_id, "train", 1).exists()


def test_the_keys_of_finished_stages_are_stored(supervised: Supervised, failed: str) -> None:
    with supervised.session() as session:
        runs = session.exec(select(StageRun).where(StageRun.job_id == failed)).all()
    assert {run.stage: bool(run.key) for run in runs} == {
        Stage.PREPARE: True, Stage.TRAIN: True, Stage.MERGE: True, Stage.CONVERT: False,
    }  # fmt: skip
