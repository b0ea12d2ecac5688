"""OpenAI's own client, as it comes, against a server behind a socket; stages are scripted."""

import asyncio
import csv
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from live_server import serve
from openai import AsyncOpenAI, OpenAI
from openai.types.fine_tuning import FineTuningJob
from supervising import Supervised

from app.main import create_app
from app.models import now
from app.webhooks.signing import sign

ROWS = "".join(
    json.dumps({"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}]}) + "\n"
    for n in range(8)
).encode()
MODEL = "smollm2-135m-instruct"
DPO = "method.dpo.hyperparameters"
EVENT = "fine_tuning.job.succeeded"
GGUF = b"GGUF" + bytes(range(256)) * 64
STAGES = """
    if stage == "inspect":
        values["report"] = {"rows": 8, "rows_refused": 0, "refusals": [], "format": "messages", "duplicates": 0}
    elif stage == "prepare":
        report("resolved", spec={"dataset": {"format": "messages"}})
        report("data", rows=8, rows_refused=0, tokens=80, trained_tokens=40, rows_cut=0, packed_rows=2)
    elif stage == "train":
        for step in (1, 2, 3):
            measured = {"eval_loss": 1.5, "eval_accuracy": 0.5} if step == 2 else {}
            point = {"step": step, "loss": 3.0 - step, "learning_rate": 1e-4} | measured
            report("metrics", points=[point])
            report("progress", step=step, total_steps=3, trained_tokens=40 * step, eta_seconds=0.0)
            report("checkpoint", step=step, bytes=7, metrics=point)
        report("summary", train_loss=1.0)
    elif stage == "convert":
        (out / "gguf").mkdir()
        (out / "gguf" / "model.gguf").write_bytes(b"GGUF" + bytes(range(256)) * 64)
        files.append(OutputFile.of(out, out / "gguf" / "model.gguf", name="gguf/model-q8_0.gguf", kind="gguf"))
    elif stage == "verify":
        values["verification"] = {"gguf/model-q8_0.gguf": {"passed": True}}
"""


@pytest.fixture
def server(supervised: Supervised) -> Iterator[str]:
    supervised.script(STAGES)
    with serve(create_app(supervised.settings)) as url:
        yield url


@pytest.fixture
def sdk(server: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server}/v1", api_key="any", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
def file_id(sdk: OpenAI, supervised: Supervised) -> str:
    file = sdk.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    assert (file.status, file.purpose, file.filename, file.bytes) == ("uploaded", "fine-tune", "rows.jsonl", len(ROWS))
    supervised.work()
    assert sdk.files.wait_for_processing(file.id).status == "processed"
    return file.id


def check_whole(thing: Any) -> None:
    """Nothing that the SDK's own type declares is missing or of another type, and what is left out is optional there."""
    type(thing).model_validate(thing.model_dump(), strict=True)


def test_a_job_from_the_upload_to_the_gguf(sdk: OpenAI, supervised: Supervised, file_id: str) -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 6}}}
    job = sdk.fine_tuning.jobs.create(
        model=MODEL, training_file=file_id, suffix="My First!", seed=7, metadata={"team": "nlp"}, method=method
    )
    check_whole(job)
    assert (job.status, job.seed, job.metadata) == ("queued", 7, {"team": "nlp"})
    assert (job.fine_tuned_model, job.result_files) == (None, [])
    assert job.hyperparameters.to_dict() == {"n_epochs": 3, "batch_size": 6, "learning_rate_multiplier": 1.0}
    assert job.method.supervised.hyperparameters.batch_size == 6
    native = sdk.get(f"/jobs/{job.id}", cast_to=dict[str, Any])
    training = native["spec"]["training"]
    assert (training["batch_size"], training["gradient_accumulation"], training["packing"]) == (2, 3, False)
    assert (training["epochs"], training["seed"], native["name"], native["labels"]) == (3.0, 7, "My First!", {"team": "nlp"})

    supervised.work()
    done = sdk.fine_tuning.jobs.retrieve(job.id)
    check_whole(done)
    assert (done.status, done.trained_tokens, done.error) == ("succeeded", 120, None)
    assert done.finished_at >= done.created_at
    assert done.fine_tuned_model == f"ft:{MODEL}:default:my-first:{job.id}"

    [result] = done.result_files
    assert sdk.files.retrieve(result).purpose == "fine-tune-results"
    lines = list(csv.DictReader(io.StringIO(sdk.files.content(result).text)))
    assert [(line["step"], line["train_loss"], line["valid_loss"]) for line in lines] == [
        ("1", "2.0", ""), ("2", "1.0", "1.5"), ("3", "0.0", ""),
    ]  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="results of a job"):
        sdk.fine_tuning.jobs.create(model=MODEL, training_file=result)

    artifacts = sdk.get(f"/jobs/{job.id}/artifacts", cast_to=dict[str, Any])["data"]
    [gguf] = [artifact for artifact in artifacts if artifact["kind"] == "gguf"]
    content = sdk.get(gguf["url"], cast_to=openai.HttpxBinaryResponseContent).read()
    assert (content, hashlib.sha256(content).hexdigest()) == (GGUF, gguf["sha256"])

    model = sdk.models.retrieve(done.fine_tuned_model)
    check_whole(model)
    assert model.id in [found.id for found in sdk.models.list()]
    assert sdk.models.delete(model.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve(model.id)
    after = sdk.fine_tuning.jobs.retrieve(job.id)
    assert (after.status, after.fine_tuned_model, after.result_files) == ("succeeded", None, [result])
    assert sdk.get(f"/jobs/{job.id}/artifacts", cast_to=dict[str, Any])["data"] == []
    with pytest.raises(openai.BadRequestError, match="deleted"):
        sdk.fine_tuning.jobs.create(model=MODEL, training_file=file_id, extra_body={"from_job": job.id})


def test_what_is_left_to_us_is_settled_and_told(sdk: OpenAI, supervised: Supervised, file_id: str) -> None:
    validation = sdk.files.create(file=("held-out.jsonl", ROWS.replace(b"Yes", b"No")), purpose="fine-tune")
    job = sdk.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file_id,
        validation_file=validation.id,
        hyperparameters={"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": 0.5},
        extra_body={"lora": {"r": 4}, "quantization": "none", "purpose": "to see", "exports": [{"kind": "adapter"}]},
    )
    assert job.validation_file == validation.id
    assert job.hyperparameters.to_dict() == {"n_epochs": 1, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    supervised.work()
    done = sdk.fine_tuning.jobs.retrieve(job.id)
    assert done.hyperparameters.batch_size == 8 * 8 // 2  # eight rows a step, four examples in each
    spec = sdk.get(f"/jobs/{job.id}", cast_to=dict[str, Any])["spec"]
    assert (spec["lora"]["r"], spec["quantization"], spec["purpose"]) == (4, "none", "to see")
    assert spec["training"]["learning_rate"] == 1e-4


def test_preferences_have_their_own_method(sdk: OpenAI, file_id: str, supervised: Supervised) -> None:
    supervised.script(STAGES.replace('"format": "messages", ', '"format": "preference", '))
    pairs = sdk.files.create(file=("pairs.jsonl", b"{}\n"), purpose="fine-tune")
    supervised.work()
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": "auto"}}}
    job = sdk.fine_tuning.jobs.create(model=MODEL, training_file=pairs.id, method=method)
    check_whole(job)
    assert (job.method.type, job.method.dpo.hyperparameters.beta) == ("dpo", 0.3)
    assert sdk.get(f"/jobs/{job.id}", cast_to=dict[str, Any])["spec"]["method"] == "dpo"


def test_lists_are_paged_by_the_sdk_itself(sdk: OpenAI, supervised: Supervised, file_id: str) -> None:
    made = [
        sdk.fine_tuning.jobs.create(model=MODEL, training_file=file_id, metadata={"n": str(n % 2)} if n < 4 else None).id
        for n in range(5)
    ]
    assert [job.id for job in sdk.fine_tuning.jobs.list(limit=2)] == made[::-1]
    assert [job.id for job in sdk.fine_tuning.jobs.list(limit=1, metadata={"n": "1"})] == [made[3], made[1]]
    assert [job.id for job in sdk.fine_tuning.jobs.list(extra_query={"metadata": "null"})] == made[4:]
    assert [job.id for job in sdk.fine_tuning.jobs.list(after=made[0])] == []
    for job_id in made[1:]:
        sdk.fine_tuning.jobs.cancel(job_id)
    supervised.work()
    more = [sdk.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune").id for _ in range(3)]

    events = list(sdk.fine_tuning.jobs.list_events(made[0], limit=3))
    for event in events:
        check_whole(event)
    assert events[0].data["event"] == "job.succeeded" and events[-1].data["event"] == "job.queued"
    assert len({event.id for event in events}) == len(events)
    measured = [event for event in events if event.type == "metrics"]
    assert [(event.data["step"], event.data["train_loss"]) for event in measured] == [(3, 0.0), (2, 1.0), (1, 2.0)]
    checkpoints = list(sdk.fine_tuning.jobs.checkpoints.list(made[0], limit=2))
    for checkpoint in checkpoints:
        check_whole(checkpoint)
    assert [found.step_number for found in checkpoints] == [3, 2, 1]
    assert checkpoints[1].metrics.full_valid_loss == 1.5
    assert checkpoints[0].fine_tuned_model_checkpoint == f"ft:{MODEL}:default::{made[0]}:ckpt-step-3"
    with pytest.raises(openai.BadRequestError, match="no event"):
        sdk.fine_tuning.jobs.list_events(made[0], after="ftevent-unknown")

    files = [file.id for file in sdk.files.list(limit=2)]
    assert len(files) == 5 and files == sorted(files, reverse=True)
    assert [file.id for file in sdk.files.list(limit=2, order="asc")] == files[::-1]
    assert [file.id for file in sdk.files.list(purpose="fine-tune")] == [*reversed(more), file_id]


def test_metadata_is_any_text(sdk: OpenAI, file_id: str) -> None:
    metadata = {"a [b] & c=\u00fc\u4e2d \U0001f600": "x" * 512, "k" * 64: "two\nlines\tand a tab", "empty": ""}
    metadata |= {f"key {n}": f"{n}" for n in range(13)}
    job = sdk.fine_tuning.jobs.create(model=MODEL, training_file=file_id, metadata=metadata)
    sdk.fine_tuning.jobs.create(model=MODEL, training_file=file_id)
    assert sdk.fine_tuning.jobs.retrieve(job.id).metadata == metadata
    for key, value in metadata.items():
        assert [found.id for found in sdk.fine_tuning.jobs.list(metadata={key: value})] == [job.id]
        assert not list(sdk.fine_tuning.jobs.list(metadata={key: f"{value}!"}))
    native = sdk.get("/jobs", cast_to=dict[str, Any], options={"params": {"label.key 1": "1"}})["data"]
    assert [found["id"] for found in native] == [job.id]


def test_jobs_are_paused_resumed_and_cancelled(sdk: OpenAI, file_id: str) -> None:
    job = sdk.fine_tuning.jobs.create(model=MODEL, training_file=file_id)
    assert sdk.fine_tuning.jobs.pause(job.id).status == "paused"
    assert sdk.fine_tuning.jobs.resume(job.id).status == "queued"
    with pytest.raises(openai.ConflictError) as refused:
        sdk.files.delete(file_id)
    assert refused.value.code == "file_in_use"
    cancelled = sdk.fine_tuning.jobs.cancel(job.id)
    check_whole(cancelled)
    assert cancelled.status == "cancelled"
    with pytest.raises(openai.ConflictError) as refused:
        sdk.fine_tuning.jobs.cancel(job.id)
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert sdk.files.delete(file_id).deleted


def test_a_failure_speaks_of_openais_fields(sdk: OpenAI, supervised: Supervised, file_id: str) -> None:
    supervised.script("""
        raise StageFailure(FailureCode.DATASET_INVALID, "Line 3 is no row.", hint="Correct it.", param="dataset.file")
    """)
    job = sdk.fine_tuning.jobs.create(model=MODEL, training_file=file_id)
    supervised.work()
    failed = sdk.fine_tuning.jobs.retrieve(job.id)
    check_whole(failed)
    assert failed.status == "failed"
    error = failed.error
    assert (error.code, error.message, error.param) == ("dataset_invalid", "Line 3 is no row. Correct it.", "training_file")
    assert [event.level for event in sdk.fine_tuning.jobs.list_events(job.id, limit=2)][:2] == ["error", "error"]


@pytest.mark.parametrize(
    "fields, param, code",
    [
        ({"model": "no-such"}, "model", "model_not_found"),
        ({"training_file": "file-none"}, "training_file", "dataset_not_found"),
        ({"validation_file": "file-none"}, "validation_file", "dataset_not_found"),
        ({"suffix": "x" * 65}, "suffix", "invalid_spec"),
        ({"seed": -1}, "seed", "invalid_spec"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_spec"),
        ({"hyperparameters": {"batch_size": 0}}, "hyperparameters.batch_size", "invalid_spec"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}}, f"{DPO}.beta", "invalid_spec"),
        ({"method": {"type": "reinforcement"}}, "method.type", "not_available"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", "invalid_spec"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", "not_available"),
        ({"extra_body": {"name": "n"}, "suffix": "s"}, "name", "invalid_spec"),
        ({"extra_body": {"training": {"epochs": 1}}, "hyperparameters": {"n_epochs": 1}}, "training.epochs", "invalid_spec"),
        ({"extra_body": {"gpus": 2}}, "gpus", "not_available"),
        ({"extra_body": {"quantisation": "none"}}, "quantisation", "invalid_spec"),
    ],
)  # fmt: skip
def test_refusals_are_400_with_the_field(sdk: OpenAI, fields: dict, param: str, code: str) -> None:
    file_id = sdk.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune").id
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.fine_tuning.jobs.create(**{"model": MODEL, "training_file": file_id} | fields)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert refused.value.request_id
    assert not list(sdk.fine_tuning.jobs.list())


def test_the_async_client_does_the_same(server: str, supervised: Supervised) -> None:
    async def go() -> FineTuningJob:
        async with AsyncOpenAI(base_url=f"{server}/v1", api_key="any", max_retries=0) as sdk:
            file = await sdk.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
            job = await sdk.fine_tuning.jobs.create(model=MODEL, training_file=file.id)
            await asyncio.to_thread(supervised.work)
            assert [found.id async for found in sdk.fine_tuning.jobs.list(limit=1)] == [job.id]
            assert len([event async for event in sdk.fine_tuning.jobs.list_events(job.id, limit=2)]) > 4
            assert len([found async for found in sdk.fine_tuning.jobs.checkpoints.list(job.id, limit=1)]) == 3
            done = await sdk.fine_tuning.jobs.retrieve(job.id)
            assert done.fine_tuned_model in [model.id async for model in sdk.models.list()]
            assert (await sdk.files.content(done.result_files[0])).text.startswith("step,")
            content = await sdk.get(f"/jobs/{job.id}/artifacts/gguf/model-q8_0.gguf", cast_to=openai.HttpxBinaryResponseContent)
            assert await content.aread() == GGUF
            return done

    assert asyncio.run(go()).status == "succeeded"


def test_the_async_client_has_the_rest_of_the_surface_too(server: str, supervised: Supervised) -> None:
    async def go() -> None:
        async with AsyncOpenAI(base_url=f"{server}/v1", api_key="any", max_retries=0) as sdk:
            files = [(await sdk.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")).id for _ in range(3)]
            assert [file.id async for file in sdk.files.list(limit=1, order="asc")] == files
            await asyncio.to_thread(supervised.work)
            assert (await sdk.files.wait_for_processing(files[0])).status == "processed"
            assert (await sdk.files.retrieve(files[0])).bytes == len(ROWS)
            assert (await sdk.files.content(files[0])).content == ROWS
            assert (await sdk.files.delete(files[1])).deleted
            jobs = sdk.fine_tuning.jobs
            job = await jobs.create(model=MODEL, training_file=files[0], validation_file=files[2], metadata={"a": "b"})
            assert (await jobs.pause(job.id)).status == "paused"
            assert (await jobs.resume(job.id)).status == "queued"
            assert (await jobs.cancel(job.id)).status == "cancelled"
            with pytest.raises(openai.ConflictError):
                await jobs.cancel(job.id)
            assert [found.id async for found in jobs.list(metadata={"a": "b"})] == [job.id]
            assert (await sdk.models.retrieve(MODEL)).id == MODEL
            with pytest.raises(openai.PermissionDeniedError):
                await sdk.models.delete(MODEL)
            made = await sdk.webhooks.create(name="ci", url="https://hooks.example.com/", event_types=[EVENT])
            assert [endpoint.id async for endpoint in sdk.webhooks.list(limit=1)] == [made.id]
            assert (await sdk.webhooks.update(made.id, name="other")).name == "other"
            assert (await sdk.webhooks.rotate_secret(made.id)).signing_secret != made.signing_secret
            body = json.dumps({"id": "evt_1", "object": "event", "type": EVENT, "created_at": 1, "data": {"id": job.id}})
            headers = sign("evt_1", now(), body.encode(), [made.signing_secret])
            assert sdk.webhooks.unwrap(body, headers, secret=made.signing_secret).data.id == job.id
            assert (await sdk.webhooks.delete(made.id)).deleted

    asyncio.run(go())


def test_base_models_cannot_be_deleted(sdk: OpenAI) -> None:
    check_whole(sdk.models.retrieve(MODEL))
    with pytest.raises(openai.PermissionDeniedError):
        sdk.models.delete(MODEL)
    with pytest.raises(openai.NotFoundError):
        sdk.models.delete("ft:a/b:default::job_none")
