"""Files that are not the model that was trained, each by one fault that a converter or a merge could have."""

import re
import shutil

import pytest
import torch
from tiny_job import TinyJob
from tiny_tokenizer import CHATML, WITH_BOS

from app.jobs.states import FailureCode
from worker.stages import StageFailure


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> TinyJob:
    return TinyJob(tmp_path_factory.mktemp("job"))


@pytest.fixture
def other_job(tmp_path):
    return lambda **options: TinyJob(tmp_path, **options)


def refuse(job: TinyJob, **options) -> StageFailure:
    with pytest.raises(StageFailure) as failure:
        job.verify(**options)
    assert failure.value.code == FailureCode.VERIFICATION_FAILED
    assert failure.value.hint and failure.value.param == "exports"
    return failure.value


def count_adapters(failure: StageFailure) -> float:
    return float(re.search("the adapter in it (.*) times", failure.message)[1])


def test_a_right_file_passes_with_its_figures(job):
    job.write()
    outcome = job.verify()
    verdict = outcome.values["verification"][job.name]
    assert [(file.name, file.kind) for file in outcome.files] == [("gguf/Modelfile", "modelfile")]
    assert 'PARAMETER stop "<|im_end|>"' in (job.folder / "out" / "Modelfile").read_text()
    assert verdict["passed"] and not verdict["problems"]
    assert 0 <= verdict["kl"] < 1e-4 and verdict["top1"] > 0.95 and verdict["tokens"] > 100
    assert verdict["perplexity"] == pytest.approx(verdict["reference_perplexity"], rel=1e-2)
    assert verdict["adapter"] == pytest.approx(1, abs=0.05)


@pytest.mark.provokes("verification_failed")
def test_queries_and_keys_that_are_not_permuted(job):
    job.write(lambda planted: setattr(planted, "permutes", False))
    failure = refuse(job)
    assert "nats per token from the merged model's" in failure.message
    assert failure.patch is None  # no other quantization would help
    assert failure.outcome.files == []
    [warning] = [event for event in job.events("warning") if event["code"] == FailureCode.VERIFICATION_FAILED][-1:]
    assert warning["artifact"] == job.name and warning["verification"]["kl"] > 0.001 and not warning["verification"]["passed"]


@pytest.mark.parametrize("times", [2, 1.5, 0.5, 0], ids=["twice", "wrong scale", "half", "not at all"])
def test_an_adapter_that_is_not_merged_once(job, times):
    job.write(times=times)
    assert "nats per token" in refuse(job).message
    failure = refuse(job, most_kl=100.0)
    assert "nats" not in failure.message
    assert count_adapters(failure) == pytest.approx(times, abs=0.3)


@pytest.mark.parametrize("times", [2, 0])
def test_an_adapter_that_changes_less_than_a_quantization_may(other_job, times):
    job = other_job(std=0.01)
    job.write()
    assert job.verify(most_kl=0.05).values["verification"][job.name]["passed"]
    job.write(times=times)
    failure = refuse(job, most_kl=0.05)
    assert "nats" not in failure.message
    assert count_adapters(failure) == pytest.approx(times, abs=0.3)


def test_a_model_of_texts_has_no_template(other_job):
    job = other_job(template=None)
    job.form = "text"
    (job.folder / "rows.jsonl").write_text('{"text": "the quick brown fox"}\n')
    job.write()
    assert job.verify().values["verification"][job.name]["passed"]
    assert 'TEMPLATE """{{ .Prompt }}"""' in (job.folder / "out" / "Modelfile").read_text()
    job.write(lambda planted: planted.fields.update({"tokenizer.chat_template": CHATML}))
    assert "its chat template is not the one" in refuse(job).message


def test_a_second_bos(job):
    job.write(lambda planted: planted.fields.update({"tokenizer.ggml.add_bos_token": True}))
    assert "llama.cpp has other tokens than training" in refuse(job).message


def test_a_bos_that_template_and_file_both_write(other_job):
    """llama.cpp takes the template's away, if it is the token that it puts in front."""
    job = other_job(template=WITH_BOS, adds_bos=True)
    adds = {"tokenizer.ggml.add_bos_token": True}
    job.write(lambda planted: planted.fields.update(adds))
    assert job.verify().values["verification"][job.name]["passed"]
    job.write(lambda planted: planted.fields.update(adds | {"tokenizer.ggml.bos_token_id": 1}))
    assert "not with one BOS" in refuse(job).message


@pytest.mark.parametrize("token", [0, 5])
def test_a_lost_stop_token(job, token):
    job.write(lambda planted: planted.fields.update({"tokenizer.ggml.eos_token_id": token}))
    assert f"its EOS is the token {token}, not 2" in refuse(job).message


def test_a_stop_token_that_llama_cpp_would_not_stop_at(other_job):
    job = other_job(stop="<|turn_is_over|>")
    job.write()
    assert "does not stop at the token" in refuse(job).message


def test_another_chat_template(job):
    job.write(lambda planted: planted.fields.update({"tokenizer.chat_template": CHATML.replace("user", "human") + " "}))
    assert "its chat template is not the one" in refuse(job).message


def test_no_chat_template(job):
    job.write(lambda planted: planted.fields.update({"tokenizer.chat_template": None}))
    assert "its chat template is not the one" in refuse(job).message


def test_another_pre_tokenizer(job):
    job.write(lambda planted: planted.fields.update({"tokenizer.ggml.pre": "llama-bpe"}))
    assert "llama.cpp has other tokens than training" in refuse(job).message


@pytest.mark.parametrize("lost", [4096, 200_000])
def test_a_truncated_file(job, lost):
    job.write()
    content = job.gguf.read_bytes()
    job.gguf.write_bytes(content[:-lost])
    assert "it is cut off" in refuse(job).message


def test_weights_that_are_no_numbers(job):
    job.write(lambda planted: planted.weights["model.layers.1.mlp.up_proj.weight"].fill_(float("nan")))
    assert "nats per token" in refuse(job).message


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda weights: weights.pop("model.norm.weight"), "model.norm.weight is not in the merged files"),
        (lambda weights: weights.update(more=torch.ones(2)), "more is more than the model has"),
        (lambda weights: weights["model.norm.weight"].fill_(float("inf")), "model.norm.weight is not finite"),
        (lambda weights: weights["model.norm.weight"].mul_(1.1), "is not the base model's weight with the adapter added once"),
    ],
    ids=["lost", "more", "infinite", "changed"],
)
def test_a_merged_model_with_a_fault(job, plant, message):
    job.write()
    job.write_merged(plant)
    try:
        assert message in refuse(job).message
    finally:
        shutil.rmtree(job.folder / "merge")


def test_a_merged_model_with_the_adapter_in_it_twice(job):
    job.write()
    job.write_merged(times=2)
    try:
        failure = refuse(job)
    finally:
        shutil.rmtree(job.folder / "merge")
    assert "is not the base model's weight with the adapter added once" in failure.message
    found = failure.outcome.values["verification"]
    assert {name: verdict["passed"] for name, verdict in found.items()} == {"merged/model.safetensors": False, job.name: True}
    assert [file.name for file in failure.outcome.files] == ["gguf/Modelfile"]


def test_a_right_merged_model_passes(other_job):
    job = other_job()
    job.write()
    job.write_merged()
    verdicts = job.verify().values["verification"]
    assert verdicts["merged/model.safetensors"] == {"method": "tensors", "passed": True, "problems": []}
