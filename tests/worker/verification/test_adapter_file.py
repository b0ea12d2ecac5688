"""An adapter by itself as a GGUF, held against what was trained, right and with one fault planted in it."""

import re

import pytest
from tiny_job import ALPHA, TinyJob, write_lora_gguf

from app.jobs.states import FailureCode
from worker.stages import StageFailure


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> TinyJob:
    job = TinyJob(tmp_path_factory.mktemp("job"))
    job.write()
    return job


def refuse(job: TinyJob) -> str:
    with pytest.raises(StageFailure) as failure:
        job.verify()
    assert failure.value.code == FailureCode.VERIFICATION_FAILED
    found = failure.value.outcome.values["verification"]
    assert {name: verdict["passed"] for name, verdict in found.items()} == {job.name: True, job.lora_name: False}
    return failure.value.message


def test_a_right_adapter_passes_with_its_figures(job):
    write_lora_gguf(job.lora, job.adapter)
    verdict = job.verify().values["verification"][job.lora_name]
    assert verdict["passed"] and not verdict["problems"]
    assert 0 <= verdict["kl"] < 1e-4 and verdict["tokens"] > 100
    assert verdict["adapter"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("times", [2, 0.5])
def test_a_wrong_scale(job, times):
    write_lora_gguf(job.lora, job.adapter, alpha=times * ALPHA)
    assert float(re.search("takes it for (.*) times", refuse(job))[1]) == pytest.approx(times, abs=0.3)


@pytest.mark.parametrize("fault", [{"permutes": False}, {"lost": "down_proj"}], ids=["not permuted", "lost"])
def test_factors_that_are_not_those_that_were_trained(job, fault):
    write_lora_gguf(job.lora, job.adapter, **fault)
    assert "nats per token from the base model's" in refuse(job)


def test_a_truncated_file(job):
    write_lora_gguf(job.lora, job.adapter)
    job.lora.write_bytes(job.lora.read_bytes()[:-4096])
    assert "cannot put it on the model" in refuse(job)
