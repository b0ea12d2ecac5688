import pytest

from app.jobs.states import FailureCode
from worker.data.architectures import trainable_types
from worker.stages import StageFailure
from worker.training.precision import OVERFLOWING, Decision, choose, refuse_overflow

T4, V100, A100, H100, CPU = (7, 5), (7, 0), (8, 0), (9, 0), None


@pytest.mark.parametrize(
    ("capability", "natural"), [(T4, "fp16"), (V100, "fp16"), (A100, "bf16"), (H100, "bf16"), ((12, 0), "bf16"), (CPU, "fp32")]
)
def test_auto_is_what_the_device_is_good_at(capability, natural):
    assert choose("auto", capability, "llama") == choose(natural, capability, "llama") == Decision(natural, None)


@pytest.mark.parametrize(("requested", "capability"), [("fp16", H100), ("fp32", T4), ("fp32", A100), ("fp32", CPU)])
def test_what_is_possible_may_be_asked_for(requested, capability):
    assert choose(requested, capability, "qwen3") == Decision(requested, None)


@pytest.mark.parametrize(
    ("requested", "capability", "instead"), [("bf16", T4, "fp16"), ("fp16", CPU, "fp32"), ("bf16", CPU, "fp32")]
)
def test_what_is_impossible_is_refused_with_a_patch_that_works(requested, capability, instead):
    with pytest.raises(StageFailure) as failure:
        choose(requested, capability, "llama")
    assert failure.value.code == FailureCode.INVALID_SPEC
    assert failure.value.param == "training.precision"
    assert failure.value.patch == {"training": {"precision": instead}}
    assert choose(instead, capability, "llama").precision == instead


@pytest.mark.parametrize("model_type", ["gemma3_text", "gemma3", "gemma4_text", "qwen3_moe", "glm4_moe"])
def test_a_model_that_overflows_fp16_never_computes_in_it(model_type):
    assert model_type in trainable_types()
    found = choose("auto", T4, model_type)
    assert found.precision == "fp32" and "7.5" in found.warning and model_type in found.warning
    assert choose("fp32", T4, model_type) == Decision("fp32", None)
    assert choose("auto", A100, model_type) == Decision("bf16", None)
    assert choose("auto", CPU, model_type) == Decision("fp32", None)
    for capability in (T4, H100, CPU):
        with pytest.raises(StageFailure, match=model_type) as failure:
            choose("fp16", capability, model_type)
        assert failure.value.patch == {"training": {"precision": "auto"}}
        choose("auto", capability, model_type)
    with pytest.raises(StageFailure):
        choose("bf16", T4, model_type)
    with pytest.raises(StageFailure, match=model_type):
        refuse_overflow("fp16", model_type)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "mistral", "phi3", "smollm3"])
def test_other_models_may(model_type):
    assert choose("auto", T4, model_type) == Decision("fp16", None)
    refuse_overflow("fp16", model_type)


def test_each_architecture_that_overflows_is_one_that_can_be_trained():
    assert all(any(known.startswith(prefix) for known in trainable_types()) for prefix in OVERFLOWING)
