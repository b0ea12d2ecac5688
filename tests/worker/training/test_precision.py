import pytest

from app.jobs.states import FailureCode
from worker.stages import StageFailure
from worker.training.precision import choose

T4, V100, A100, H100, CPU = (7, 5), (7, 0), (8, 0), (9, 0), None


@pytest.mark.parametrize(
    ("capability", "natural"), [(T4, "fp16"), (V100, "fp16"), (A100, "bf16"), (H100, "bf16"), ((12, 0), "bf16"), (CPU, "fp32")]
)
def test_auto_is_what_the_device_is_good_at(capability, natural):
    assert choose("auto", capability) == natural
    assert choose(natural, capability) == natural


@pytest.mark.parametrize(("requested", "capability"), [("fp16", H100), ("fp32", T4), ("fp32", A100), ("fp32", CPU)])
def test_what_is_possible_may_be_asked_for(requested, capability):
    assert choose(requested, capability) == requested


@pytest.mark.parametrize(
    ("requested", "capability", "instead"), [("bf16", T4, "fp16"), ("fp16", CPU, "fp32"), ("bf16", CPU, "fp32")]
)
def test_what_is_impossible_is_refused_with_a_patch_that_works(requested, capability, instead):
    with pytest.raises(StageFailure) as failure:
        choose(requested, capability)
    assert failure.value.code == FailureCode.INVALID_SPEC
    assert failure.value.param == "training.precision"
    assert failure.value.patch == {"training": {"precision": instead}}
    assert choose(instead, capability) == instead
