"""A stage that the host has no memory for: refused by the kernel, or killed by it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervising import Supervised

from app.jobs.spec import JobSpec, merged
from app.jobs.states import JobStatus, StageStatus

GROUPS = Path("/sys/fs/cgroup")
LIMIT_BYTES = 150 * 2**20


@pytest.fixture
def small_group() -> Iterator[Path]:
    """The file that takes process ids into a control group of little memory."""
    version_1 = (GROUPS / "memory" / "memory.limit_in_bytes").exists()
    group = (GROUPS / "memory" if version_1 else GROUPS) / f"tunesmith-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("needs a control group of its own")
    try:
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(LIMIT_BYTES))
        swapping = group / ("memory.swappiness" if version_1 else "memory.swap.max")
        if swapping.exists():  # a machine with swap would kill nobody
            swapping.write_text("0")
        yield group / "cgroup.procs"
    except FileNotFoundError:
        pytest.skip("no memory controller")
    finally:
        group.rmdir()


GREEDY = """
    if stage == "train":
        LIMIT
        held = [bytes(range(256)) * 2**12 * 100 for _ in range(spec.training.batch_size)]
"""


@pytest.mark.provokes("out_of_memory")
def test_what_the_kernel_kills_for_memory_goes_down_the_ladder(supervised: Supervised, small_group: Path) -> None:
    supervised.script(GREEDY.replace("LIMIT", f"open({str(small_group)!r}, 'w').write(str(os.getpid()))"))
    job_id = supervised.submit(training={"batch_size": 4, "gradient_accumulation": 1, "memory": "balanced"})
    supervised.work()
    job = supervised.job(job_id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    trains = supervised.runs(job_id)[1:]
    assert [run.status for run in trains] == [StageStatus.FAILED, StageStatus.FAILED, StageStatus.SUCCEEDED]
    assert {(run.error or {})["code"] for run in trains[:2]} == {"out_of_memory"}
    assert "kernel killed" in (trains[0].error or {})["message"]
    assert (job.spec["training"]["batch_size"], job.spec["training"]["gradient_accumulation"]) == (1, 4)


@pytest.mark.provokes("out_of_memory")
def test_what_the_kernel_refuses_fails_with_advice_when_the_ladder_is_off(supervised: Supervised) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))"
    supervised.script(GREEDY.replace("LIMIT", limit))
    job_id = supervised.submit(training={"batch_size": 16, "oom_ladder": False})
    supervised.work()
    error = supervised.job(job_id).error or {}
    assert (error["code"], len(supervised.runs(job_id))) == ("out_of_memory", 2)
    assert "training.batch_size" in error["hint"]


def test_a_base_model_that_alone_is_too_large_is_not_tried_with_smaller_batches(supervised: Supervised) -> None:
    supervised.script("""
        if stage == "train":
            patch = {"quantization": "nf4"}
            raise StageFailure(FailureCode.OUT_OF_MEMORY, "Too large.", param="quantization", patch=patch)
    """)
    job_id = supervised.submit(quantization="none")
    supervised.work()
    job = supervised.job(job_id)
    assert (job.status, len(supervised.runs(job_id))) == (JobStatus.FAILED, 2)
    assert JobSpec.model_validate(merged(job.spec, (job.error or {})["patch"])).quantization == "nf4"
