"""What a finished job leaves beside its files: how they were made, and what they are."""

import hashlib

from starlette.testclient import TestClient
from supervising import Supervised

from app.jobs.states import Stage

SCRIPT = """
    if stage == "prepare":
        values |= {"base_model": {"name": "smollm2-135m-instruct", "revision": "1" * 40}, "plan_sha256": "2" * 64}
    if stage == "train":
        values |= {"versions": {"torch": "2.13.0"}}
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
    job_id = supervised.submit(dataset={"file": data.id})
    supervised.work()
    receipt = client.get(f"/v1/jobs/{job_id}/artifacts/receipt.json").json()
    assert receipt["spec"] == supervised.job(job_id).spec and receipt["spec"]["training"]["precision"] == "fp32"
    assert receipt["lineage"]["revision"] == "1" * 40
    assert receipt["lineage"]["dataset"]["sha256"] == data.blob_sha256
    assert receipt["lineage"]["dataset"]["data_plan_sha256"] == "2" * 64
    assert receipt["versions"] == {"torch": "2.13.0"}
    assert [stage["name"] for stage in receipt["stages"]] == [Stage.PREPARE, Stage.TRAIN]
    assert all(stage["duration_seconds"] > 0 and stage["peak_host_bytes"] for stage in receipt["stages"])
