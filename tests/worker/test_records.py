"""What a finished job leaves beside its files: how they were made, and what they are."""

import hashlib
from importlib.metadata import version

from sqlmodel import select
from starlette.testclient import TestClient
from supervising import Supervised

from app.jobs.states import Stage
from app.models import Checkpoint

SCRIPT = """
    if stage == "prepare":
        values |= {"base_model": {"name": "smollm2-135m-instruct", "revision": "1" * 40}, "plan_sha256": "2" * 64}
        if spec.from_checkpoint:
            values |= {"plan_sha256": "3" * 64, "train": {"adapter": "a", "from_checkpoint": {"adapter_sha256": "4" * 64}}}
    if stage == "convert":
        values |= {"versions": {"xllamacpp": "2026.10"}}
    if stage == "verify":
        values |= {"verification": {}}
    if stage == "train":
        folder = out / "checkpoints" / "step-000004"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text('{"files": {}}')
        values |= {"versions": {"torch": "2.13.0"}}
        report("checkpoint", step=4, bytes=1)
        report("resolved", spec={"training": {"precision": "fp32"}})
        (out / "a").write_text("weights")
        files.append(OutputFile.of(out, out / "a", name="adapter/a.safetensors", kind="adapter"))
"""


def test_the_manifest_names_every_file_with_its_hash(supervised: Supervised, client: TestClient) -> None:
    supervised.script(SCRIPT)
    job_id = supervised.submit()
    supervised.work()
    listed = {entry["name"]: entry for entry in client.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]}
    manifest = client.get(listed["manifest.json"]["url"]).json()
    assert (
        {file["name"] for file in manifest["files"]}
        == set(listed) - {"manifest.json"}
        == {"adapter/a.safetensors", "receipt.json"}
    )
    for file in manifest["files"]:
        content = client.get(listed[file["name"]]["url"]).content
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_receipt_tells_how_they_were_made(supervised: Supervised, client: TestClient) -> None:
    supervised.script(SCRIPT)
    data = supervised.upload(b"{}\n")
    job_id = supervised.submit(dataset={"file": data.id}, exports=[{"kind": "lora_gguf"}])
    supervised.work()
    receipt = client.get(f"/v1/jobs/{job_id}/artifacts/receipt.json").json()
    assert receipt["spec"] == supervised.job(job_id).spec and receipt["spec"]["training"]["precision"] == "fp32"
    assert receipt["lineage"]["revision"] == "1" * 40
    assert receipt["lineage"]["dataset"]["sha256"] == data.blob_sha256
    assert receipt["lineage"]["dataset"]["data_plan_sha256"] == "2" * 64
    assert receipt["versions"] == {"tunesmith": version("tunesmith"), "torch": "2.13.0", "xllamacpp": "2026.10"}
    assert [stage["name"] for stage in receipt["stages"]] == [Stage.PREPARE, Stage.TRAIN, Stage.CONVERT, Stage.VERIFY]
    assert all(stage["duration_seconds"] > 0 and stage["peak_host_bytes"] for stage in receipt["stages"])


def test_the_receipt_of_an_exported_checkpoint_tells_what_it_was_trained_on(supervised: Supervised, client: TestClient) -> None:
    supervised.script(SCRIPT)
    data, others = supervised.upload(b"{}\n"), supervised.upload(b"[]\n")
    source = supervised.submit(dataset={"file": data.id})
    supervised.work()
    with supervised.session() as session:
        [checkpoint] = session.exec(select(Checkpoint))
    job_id = supervised.submit(dataset={"file": others.id}, from_job=source, from_checkpoint=checkpoint.id)
    supervised.work()
    receipt = client.get(f"/v1/jobs/{job_id}/artifacts/receipt.json").json()
    lineage = receipt["lineage"]
    assert (lineage["from_job"], lineage["from_checkpoint"]) == (source, checkpoint.id)
    assert lineage["from_adapter_sha256"] == "4" * 64
    assert (lineage["dataset"]["sha256"], lineage["dataset"]["data_plan_sha256"]) == (data.blob_sha256, "2" * 64)
    assert receipt["versions"]["torch"] == "2.13.0"
    assert receipt["spec"]["dataset"]["file"] == others.id
