"""A job that exports a checkpoint of another one: no training, the same stages after it."""

import json

from sqlmodel import select
from supervising import Supervised

from app.jobs.states import JobStatus, Stage
from app.models import Checkpoint

SCRIPT = """
    if stage == "train":
        folder = out / "checkpoints" / "step-000004"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text('{"files": {}}')
        report("checkpoint", step=4, bytes=1)
    if stage == "prepare" and spec.from_checkpoint:
        values = {"train": {"adapter": "adapter", "steps": 4}}
        print(inputs.adapter)
    if stage == "merge":
        print(json.dumps([str(inputs.folders["train"]), inputs.values["train"].get("steps"), str(inputs.adapter)]))
"""


def read_log(supervised, job_id, stage):
    return (supervised.storage.attempt_folder(job_id, stage, 1) / "log.txt").read_text().strip()


def test_the_stages_after_training_find_what_prepare_took(supervised: Supervised) -> None:
    supervised.script(SCRIPT)
    source = supervised.submit()
    supervised.work()
    with supervised.session() as session:
        [checkpoint] = session.exec(select(Checkpoint))
    job_id = supervised.submit(from_job=source, from_checkpoint=checkpoint.id, exports=[{"kind": "merged"}])
    supervised.work()
    job = supervised.job(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert [run.stage for run in supervised.runs(job_id)][:2] == [Stage.PREPARE, Stage.MERGE]
    storage = supervised.storage
    assert read_log(supervised, job_id, "prepare") == str(storage.checkpoint(source, 1, 4))
    folder = storage.attempt_folder(job_id, "prepare", 1) / "out"
    assert json.loads(read_log(supervised, job_id, "merge")) == [str(folder), 4, "None"]


def test_a_checkpoint_that_has_gone_meanwhile_fails_the_job_with_its_name(supervised: Supervised) -> None:
    supervised.script(SCRIPT)
    source = supervised.submit()
    supervised.work()
    with supervised.session() as session:
        [checkpoint] = session.exec(select(Checkpoint))
    job_id = supervised.submit(from_job=source, from_checkpoint=checkpoint.id)
    (supervised.storage.checkpoint(source, 1, 4) / "manifest.json").unlink()
    supervised.work()
    error = supervised.job(job_id).error
    assert (error["code"], error["param"]) == ("invalid_spec", "from_checkpoint")
    assert checkpoint.id in error["message"]
