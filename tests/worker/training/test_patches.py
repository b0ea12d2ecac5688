"""A failure with a patch: laid over the spec, the patch makes the same stage succeed on the same data."""

import json
import resource

import pytest
from tiny_run import events, finish, losses, make_inputs, make_spec, run_here, start

from app.jobs.spec import JobSpec, merged
from app.jobs.states import FailureCode
from worker.stages import StageFailure

CAUSES = [
    ("invalid_spec", {"training": {"precision": "fp16"}}),
    ("invalid_spec", {"training": {"precision": "bf16"}}),
    ("invalid_spec", {"lora": {"target_modules": ["no_such_layer"]}}),
    ("invalid_spec", {"lora": {"target_modules": ["q_proj", "lm_head"]}}),
    ("nan_loss", {"lora": {"alpha": 1e20}, "training": {"learning_rate": 1.0}}),
]


@pytest.mark.provokes("invalid_spec", "nan_loss")
@pytest.mark.parametrize(("code", "change"), CAUSES, ids=[f"{code}-{number}" for number, (code, _) in enumerate(CAUSES)])
def test_the_patch_makes_training_succeed(tmp_path, code, change):
    inputs = make_inputs(tmp_path)
    spec = JobSpec.model_validate(merged(make_spec({"quantization": "none"}).model_dump(), change))
    with pytest.raises(StageFailure) as failure:
        run_here(spec, inputs, tmp_path / "1")
    assert (failure.value.code, bool(failure.value.param)) == (code, True)
    patched = JobSpec.model_validate(merged(spec.model_dump(), failure.value.patch))
    assert run_here(patched, inputs, tmp_path / "2").values["steps"] == 4


@pytest.mark.provokes("out_of_memory")
@pytest.mark.ml
@pytest.mark.timeout(3600)  # several trainings, one after the other
def test_patches_walk_down_to_what_fits_into_the_host_s_memory(tmp_path):
    """Of a stage that may have so much and no more. Each patch keeps the rows of a step; in the end one is small enough."""
    inputs = make_inputs(tmp_path)
    spec = make_spec({"quantization": "none"}, batch_size=4096, gradient_accumulation=1, max_steps=1)
    codes = []
    for number in range(8):
        attempt = tmp_path / str(number)
        process = start(spec, inputs, attempt)
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (3 * 2**30, 3 * 2**30))
        result = finish(process, attempt)
        if result["status"] == "succeeded":
            break
        codes.append(result["error"]["code"])
        spec = JobSpec.model_validate(merged(json.loads(spec.model_dump_json()), result["error"]["patch"]))
        assert spec.training.batch_size * spec.training.gradient_accumulation == 4096
    assert result["status"] == "succeeded"
    assert set(codes) == {FailureCode.OUT_OF_MEMORY}
    assert losses(attempt)
    assert not events(attempt, "warning")
