"""A job's way through real stage processes: what is stored, and what follows each kind of end."""

import os

import pytest
from sqlmodel import select
from supervising import Supervised, is_gone, wait_until

import worker.runner
from app.db import write_session
from app.jobs import stage_runs
from app.jobs.states import EventType, JobStatus, Resource, Stage, StageStatus
from app.models import Artifact, Checkpoint, Job, MetricChunk, StageRun, now
from worker.settlement import Ending


def list_types(supervised: Supervised, job_id: str) -> list[str]:
    return [event.type.value for event in supervised.events(job_id)]


def ask_to_cancel(supervised: Supervised, job_id: str) -> None:
    with write_session(supervised.engine) as session:
        session.get_one(Job, job_id).cancel_requested_at = now()


def test_a_job_goes_through_its_stages_and_everything_reported_is_stored(supervised: Supervised) -> None:
    supervised.script("""
        if stage == "prepare":
            assert inputs.file.read_bytes() == b"{}\\n" and inputs.filename == "data.jsonl"
            report("data", rows=3)
            report("data", tokens=9)
            values["path"] = "plan"
        else:
            assert inputs.folders["prepare"].parts[-3:] == ("prepare", "1", "out")
            assert inputs.values == {"prepare": {"path": "plan"}}
            report("resolved", spec={"training": {"precision": "fp32"}})
            report("progress", step=1, total_steps=2, message="warming up")
            report("metrics", points=[{"step": 1, "loss": 2.5}])
            report("checkpoint", step=1, bytes=7, metrics={"loss": 2.5})
            report("progress", step=2)
            report("memory", device="cpu", peak_reserved_bytes=5)
            report("summary", train_loss=2.0)
            report("warning", code="slow", message="This is slow.")
            (out / "adapter").mkdir()
            (out / "adapter" / "a.safetensors").write_bytes(b"weights")
            files.append(OutputFile.of(out, out / "adapter" / "a.safetensors", name="adapter/a.safetensors", kind="adapter"))
    """)
    job_id = supervised.submit(name="mine")
    supervised.work()

    job = supervised.job(job_id)
    assert (job.status, job.stage, job.error) == (JobStatus.SUCCEEDED, Stage.TRAIN, None)
    assert job.started_at and job.finished_at
    assert job.data == {"rows": 3, "tokens": 9}
    assert job.progress == {"step": 2, "total_steps": 2, "message": None}
    assert job.memory == {"device": "cpu", "peak_reserved_bytes": 5}
    assert job.metrics == {"train_loss": 2.0}
    assert job.spec["training"]["precision"] == "fp32" and job.spec["training"]["batch_size"] == 2
    assert list_types(supervised, job_id) == [
        "job.queued", "job.started", "stage.started", "stage.finished",
        "stage.started", "job.checkpoint", "job.warning", "job.artifact", "stage.finished",
        "job.artifact", "job.artifact", "job.succeeded",
    ]  # fmt: skip
    with supervised.session() as session:
        [artifact] = session.exec(select(Artifact).where(Artifact.kind == "adapter"))
        [checkpoint] = session.exec(select(Checkpoint))
        [chunk] = session.exec(select(MetricChunk))
    blob = supervised.storage.blob(artifact.blob_sha256)
    assert (artifact.name, artifact.kind, blob.read_bytes()) == ("adapter/a.safetensors", "adapter", b"weights")
    assert blob.samefile(supervised.storage.job_folder(job_id) / "train/1/out/adapter/a.safetensors")
    assert (checkpoint.step, checkpoint.bytes, checkpoint.metrics) == (1, 7, {"loss": 2.5})
    assert chunk.points == [{"step": 1, "loss": 2.5}]
    prepare, train = supervised.runs(job_id)
    assert prepare.outputs == {"values": {"path": "plan"}, "files": []}
    assert train.outputs and train.outputs["files"][0]["sha256"] == artifact.blob_sha256
    assert train.peak_host_bytes and train.worker_id == "wrk_test" and train.started_at and train.finished_at


def test_reports_and_the_lease_are_written_while_the_stage_runs(supervised: Supervised) -> None:
    supervised.script("""
        report("progress", step=1)
        while not (inputs.models_dir / "go").exists():
            time.sleep(0.02)
    """)
    job_id = supervised.submit()
    with supervised.working():
        wait_until(lambda: supervised.job(job_id).progress == {"step": 1})
        first = supervised.runs(job_id)[0].lease_until
        assert supervised.job(job_id).status is JobStatus.RUNNING
        wait_until(lambda: supervised.runs(job_id)[0].lease_until > first)
        (supervised.scripts / "go").touch()
    assert [run.stage for run in supervised.runs(job_id)] == [Stage.PREPARE, Stage.TRAIN]
    assert supervised.job(job_id).stage is Stage.TRAIN


def test_a_failure_ends_the_job_with_its_code_and_its_patch(supervised: Supervised) -> None:
    supervised.script("""
        print("what the log keeps")
        raise StageFailure(FailureCode.DATASET_EMPTY, "No row is left.", hint="Upload more.", param="dataset", patch={"a": 1})
    """)
    job_id = supervised.submit()
    supervised.work()
    job = supervised.job(job_id)
    error = {
        "code": "dataset_empty",
        "message": "No row is left.",
        "hint": "Upload more.",
        "param": "dataset",
        "patch": {"a": 1},
    }
    assert job.status is JobStatus.FAILED and job.error == error | {"log": "prepare/1/log.txt"}
    assert "what the log keeps" in (supervised.storage.job_folder(job_id) / job.error["log"]).read_text()
    assert list_types(supervised, job_id)[-2:] == ["stage.failed", "job.failed"]
    assert supervised.runs(job_id)[0].error == job.error


def test_a_validation_file_is_handed_over_with_its_name(supervised: Supervised) -> None:
    supervised.script("""
        assert inputs.file.read_bytes() == b"{}\\n"
        assert (inputs.validation_file.read_bytes(), inputs.validation_filename) == (b"[]", "held-out.json")
    """)
    held_out = supervised.upload(b"[]", "held-out.json").id
    files = {"file": supervised.upload(b"{}\n").id, "validation_file": held_out}
    job_id = supervised.submit(dataset=files)
    supervised.work()
    assert supervised.job(job_id).status is JobStatus.SUCCEEDED
    job_id = supervised.submit(dataset=files | {"validation_file": "file-gone"})
    supervised.work()
    error = supervised.job(job_id).error
    assert error and (error["code"], error["param"]) == ("dataset_not_found", "dataset.validation_file")


def test_the_adapter_of_an_earlier_job_is_handed_over(supervised: Supervised) -> None:
    """Its job has succeeded by then, and most of its folders have been tidied away."""
    supervised.script("""
        if stage == "train":
            found = inputs.adapter and (inputs.adapter / "adapter_model.safetensors").read_text()
            assert found == ("first" if spec.from_job else None)
            (out / "adapter").mkdir()
            (out / "adapter" / "adapter_model.safetensors").write_text("first")
    """)
    first = supervised.submit()
    supervised.work()
    second = supervised.submit(from_job=first)
    supervised.work()
    assert [supervised.job(job_id).status for job_id in (first, second)] == [JobStatus.SUCCEEDED] * 2
    lost = supervised.submit(from_job="job_gone")
    supervised.work()
    error = supervised.job(lost).error
    assert error and (error["code"], error["param"], error["patch"]) == ("invalid_spec", "from_job", {"from_job": None})


@pytest.mark.provokes("dataset_not_found")
def test_a_missing_data_set_fails_before_anything_starts(supervised: Supervised) -> None:
    supervised.script("")
    job_id = supervised.submit(dataset={"file": "file-gone"})
    supervised.work()
    error = supervised.job(job_id).error
    assert error and (error["code"], error["param"]) == ("dataset_not_found", "dataset.file")
    assert not supervised.storage.job_folder(job_id).exists()


def test_out_of_memory_goes_down_the_ladder_at_the_same_effective_batch(supervised: Supervised) -> None:
    supervised.script("""
        if stage == "train":
            report("resolved", spec={"training": {"memory": "speed"}})
            if spec.training.memory != "balanced":
                raise StageFailure(FailureCode.OUT_OF_MEMORY, "The device ran out of memory.")
            values["shape"] = [spec.training.batch_size, spec.training.gradient_accumulation]
    """)
    job_id = supervised.submit(training={"batch_size": 6, "gradient_accumulation": 2})
    supervised.work()
    assert supervised.job(job_id).status is JobStatus.SUCCEEDED
    trains = supervised.runs(job_id)[1:]
    assert [run.overrides for run in trains] == [
        None,
        {"training": {"batch_size": 3, "gradient_accumulation": 4}},
        {"training": {"batch_size": 1, "gradient_accumulation": 12}},
        {"training": {"batch_size": 1, "gradient_accumulation": 12, "memory": "balanced"}},
    ]
    assert trains[-1].outputs == {"values": {"shape": [1, 12]}, "files": []}
    assert supervised.job(job_id).spec["training"]["gradient_accumulation"] == 12
    assert list_types(supervised, job_id).count("job.retrying") == 3


@pytest.mark.parametrize("training", [{"oom_ladder": False}, {"batch_size": 1, "memory": "balanced"}])
def test_out_of_memory_fails_where_no_rung_is_left(supervised: Supervised, training: dict) -> None:
    supervised.script("""
        if stage == "train":
            raise MemoryError
    """)
    job_id = supervised.submit(training=training)
    supervised.work()
    error = supervised.job(job_id).error
    assert error and error["code"] == "out_of_memory"
    assert len(supervised.runs(job_id)) == 2


def test_a_killed_stage_goes_on_from_what_it_saved(supervised: Supervised) -> None:
    supervised.script("""
        if stage == "train":
            if attempt < 3:
                checkpoint = out / "checkpoints" / f"step-{attempt}"
                checkpoint.mkdir(parents=True)
                (checkpoint / "manifest.json").write_text('{"files": {}}')
                (out / "half").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            values["earlier"] = [str(path.relative_to(folder)) for folder in inputs.earlier for path in folder.rglob("*-*")]
            values["partial"] = [path.name for folder in inputs.earlier for path in folder.glob("half")]
    """)
    job_id = supervised.submit()
    supervised.work()
    runs = supervised.runs(job_id)[1:]
    assert [run.status for run in runs] == [StageStatus.FAILED, StageStatus.FAILED, StageStatus.SUCCEEDED]
    assert runs[2].outputs and runs[2].outputs["values"] == {
        "earlier": [f"checkpoints/step-{step}" for step in (2, 1)],
        "partial": [],
    }
    retrying = [event for event in supervised.events(job_id) if event.type is EventType.JOB_RETRYING]
    assert [event.data["attempt"] for event in retrying] == [2, 3]
    assert "SIGKILL" in retrying[0].message


@pytest.mark.provokes("worker_lost")
def test_three_deaths_in_a_row_without_a_checkpoint_end_the_job(supervised: Supervised) -> None:
    supervised.script("""
        if attempt == 2:
            report("checkpoint", step=1, bytes=1, metrics={})
        os._exit(3)
    """)
    job_id = supervised.submit()
    supervised.work()
    assert len(supervised.runs(job_id)) == 5
    job = supervised.job(job_id)
    assert job.status is JobStatus.FAILED and job.error
    assert (job.error["code"], job.error["log"]) == ("worker_lost", "prepare/5/log.txt")
    assert "exit status 3" in job.error["message"]


def test_cancelling_lets_the_stage_leave(supervised: Supervised) -> None:
    supervised.script("""
        with report.holding_stop():
            report("progress", step=1)
            while not report.stop_requested:
                time.sleep(0.02)
            report("checkpoint", step=4, bytes=1, metrics={})
            raise StageStopped
    """)
    job_id = supervised.submit()
    with supervised.working():
        wait_until(lambda: supervised.job(job_id).progress)
        ask_to_cancel(supervised, job_id)
    job = supervised.job(job_id)
    assert (job.status, [run.status for run in supervised.runs(job_id)]) == (JobStatus.CANCELLED, [StageStatus.CANCELLED])
    assert list_types(supervised, job_id)[-2:] == ["job.checkpoint", "job.cancelled"]


def test_cancelling_a_stage_that_finishes_keeps_what_it_made_and_starts_no_other(supervised: Supervised) -> None:
    supervised.script("""
        with report.holding_stop():
            report("progress", step=1)
            while not report.stop_requested:
                time.sleep(0.02)
    """)
    job_id = supervised.submit()
    with supervised.working():
        wait_until(lambda: supervised.job(job_id).progress)
        ask_to_cancel(supervised, job_id)
    assert supervised.job(job_id).status is JobStatus.CANCELLED
    assert [run.status for run in supervised.runs(job_id)] == [StageStatus.SUCCEEDED]


def test_cancelling_kills_a_stage_that_will_not_leave_and_all_that_it_started(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(worker.runner.GRACE_SECONDS, Ending.CANCELLED, 0.5)
    supervised.script("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
        child.stdout.readline()
        report("progress", own=os.getpid(), child=child.pid)
        time.sleep(600)
    """)
    job_id = supervised.submit()
    with supervised.working():
        pids = wait_until(lambda: supervised.job(job_id).progress)
        ask_to_cancel(supervised, job_id)
    assert supervised.job(job_id).status is JobStatus.CANCELLED
    wait_until(lambda: is_gone(pids["own"]) and is_gone(pids["child"]))


def test_what_a_finished_stage_leaves_running_is_killed(supervised: Supervised) -> None:
    supervised.script("""
        values["child"] = subprocess.Popen(["sleep", "600"]).pid
    """)
    job_id = supervised.submit()
    supervised.work()
    for run in supervised.runs(job_id):
        assert run.outputs
        wait_until(lambda pid=run.outputs["values"]["child"]: is_gone(pid))


def test_a_job_that_is_to_be_cancelled_does_not_start_its_next_stage(supervised: Supervised) -> None:
    supervised.script("")
    job_id = supervised.submit()
    ask_to_cancel(supervised, job_id)
    supervised.work()
    assert supervised.job(job_id).status is JobStatus.CANCELLED
    assert [run.status for run in supervised.runs(job_id)] == [StageStatus.CANCELLED]
    assert list_types(supervised, job_id) == ["job.queued", "job.cancelled"]


def test_a_worker_that_leaves_gives_its_run_back(supervised: Supervised) -> None:
    supervised.script("""
        if stage == "train" and attempt == 1:
            with report.holding_stop():
                report("progress", step=1)
                while not report.stop_requested:
                    time.sleep(0.02)
                (out / "checkpoints" / "step-1").mkdir(parents=True)
                raise StageStopped
        assert stage == "prepare" or (inputs.earlier[0] / "checkpoints" / "step-1").exists()
    """)
    job_id = supervised.submit()
    supervised.work(Resource.CPU)
    with supervised.working(Resource.GPU):
        wait_until(lambda: (supervised.job(job_id).progress or {}).get("step"))
        supervised.runner.stop.times = 1
    assert [run.status for run in supervised.runs(job_id)[1:]] == [StageStatus.CANCELLED, StageStatus.QUEUED]
    assert supervised.job(job_id).status is JobStatus.RUNNING
    supervised.runner = supervised.make_runner("wrk_other")
    supervised.work(Resource.GPU)
    assert supervised.runs(job_id)[2].status is StageStatus.SUCCEEDED
    reasons = [event.data["reason"] for event in supervised.events(job_id) if event.type is EventType.JOB_RETRYING]
    assert reasons == ["stopped"]


def test_a_run_that_was_taken_away_is_killed_and_forgotten(supervised: Supervised) -> None:
    supervised.script("""
        report("progress", pid=os.getpid())
        while not (inputs.models_dir / "go").exists():
            time.sleep(0.02)
        report("progress", late=True)
        time.sleep(600)
    """)
    job_id = supervised.submit()
    with supervised.working():
        pid = wait_until(lambda: supervised.job(job_id).progress)["pid"]
        with write_session(supervised.engine) as session:
            run = session.get_one(StageRun, supervised.runs(job_id)[0].id)
            stage_runs.finish(session, run.id, run.fence, StageStatus.CANCELLED)
        (supervised.scripts / "go").touch()
    assert is_gone(pid)
    assert supervised.job(job_id).progress == {"pid": pid}
    assert len(supervised.runs(job_id)) == 1


def test_secrets_of_the_service_stay_out_of_the_stage(supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_BOOTSTRAP_KEY", "secret-key")
    supervised.script("""
        values["environment"] = str(dict(os.environ))
    """)
    job_id = supervised.submit()
    supervised.work()
    outputs = supervised.runs(job_id)[0].outputs
    assert outputs and "secret-key" not in outputs["values"]["environment"]
    assert os.environ["PATH"] in outputs["values"]["environment"]


@pytest.mark.provokes("internal")
def test_results_that_are_not_what_the_stage_said_fail_the_job(supervised: Supervised) -> None:
    supervised.script("""
        (out / "a").write_bytes(b"one")
        files.append(OutputFile.of(out, out / "a", name="a", kind="adapter"))
        (out / "a").write_bytes(b"another")
    """)
    job_id = supervised.submit()
    supervised.work()
    job = supervised.job(job_id)
    assert job.status is JobStatus.FAILED and job.error and job.error["code"] == "internal"
    with supervised.session() as session:
        assert session.exec(select(Artifact)).all() == []


def test_a_stage_that_cannot_start_fails_the_job(supervised: Supervised) -> None:
    job_id = supervised.submit()
    supervised.storage.job_folder(job_id).parent.mkdir(parents=True)
    supervised.storage.job_folder(job_id).write_text("in the way")
    supervised.work()
    job = supervised.job(job_id)
    assert job.status is JobStatus.FAILED and job.error
    assert job.error["code"] == "internal" and "could not start" in job.error["message"]


def test_an_inspection_stores_its_report_with_the_file(supervised: Supervised) -> None:
    supervised.script("""
        assert spec is None
        if inputs.filename == "bad.jsonl":
            raise StageFailure(FailureCode.DATASET_INVALID, "Line 1 is not JSON.")
        values["report"] = {"rows": len(inputs.file.read_bytes().splitlines())}
    """)
    good, bad = supervised.upload(b"1\n2\n"), supervised.upload(b"{", "bad.jsonl")
    supervised.inspect(good)
    supervised.inspect(bad)
    supervised.work()
    with supervised.session() as session:
        good, bad = session.get_one(type(good), good.id), session.get_one(type(bad), bad.id)
    assert (good.status, good.report) == ("processed", {"rows": 2})
    assert (bad.status, bad.status_details, bad.report) == ("error", "Line 1 is not JSON.", None)
