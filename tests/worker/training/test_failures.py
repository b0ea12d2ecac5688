import torch
from tiny_run import make_spec

from app.jobs.spec import JobSpec, merged
from app.jobs.states import FailureCode
from worker.training.failures import is_out_of_memory, lost_loss, out_of_memory


def test_what_running_out_of_memory_looks_like():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory")
    )
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_patches_walk_down_to_what_fits_and_keep_the_rows_of_a_step():
    spec, params = make_spec(batch_size=6, gradient_accumulation=4, memory="speed", max_seq_length=20), []
    for _ in range(4):
        failure = out_of_memory(spec, "Tesla T4", training=True)
        assert failure.code == FailureCode.OUT_OF_MEMORY
        params.append(failure.param)
        spec = JobSpec.model_validate(merged(spec.model_dump(), failure.patch))
    assert params == ["training.batch_size", "training.batch_size", "training.memory", "training.max_seq_length"]
    assert (spec.training.batch_size, spec.training.gradient_accumulation) == (1, 24)
    assert (spec.training.memory, spec.training.max_seq_length) == ("balanced", 16)


def test_a_base_that_does_not_fit_is_quantised_or_too_large():
    spec = make_spec()
    assert out_of_memory(spec, "cpu", training=False).patch is None
    plain = spec.model_copy(update={"quantization": "none"})
    assert out_of_memory(plain, "cpu", training=False).patch == {"quantization": "nf4"}


def test_a_lost_loss_asks_for_bf16_where_there_is_some_else_for_a_lower_rate():
    assert lost_loss(make_spec(precision="fp16"), 3, True).patch == {"training": {"precision": "bf16"}}
    assert lost_loss(make_spec(precision="fp16", learning_rate=0.1), 3, False).patch == {"training": {"learning_rate": 0.01}}
    assert lost_loss(make_spec(precision="bf16", learning_rate=0.1), 3, True).param == "training.learning_rate"
