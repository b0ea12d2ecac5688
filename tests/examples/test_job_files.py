"""The example job files are jobs that the API takes, and say what the experiments were."""

import json
from pathlib import Path

import pytest

from app.jobs.availability import check_available, check_combinations
from app.jobs.spec import BUILT_IN_MODEL, JobSpec, plan

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
JOB_FILES = sorted(EXAMPLES.glob("*.json"))
EXPERIMENTS = {
    # number: samples, steps, checkpoints, stages
    1: (64, 1, None, ["prepare", "train"]),
    2: (10_000, 50, 10, ["prepare", "train", "merge", "convert", "verify"]),
    3: (10_000, 600, 10, ["prepare", "train", "merge", "convert", "verify"]),
}


def read_job(name):
    return JobSpec.model_validate_json((EXAMPLES / name).read_text())


@pytest.mark.parametrize("path", JOB_FILES, ids=lambda path: path.name)
def test_job_file_is_a_job_that_this_version_can_do(path):
    spec = read_job(path.name)
    assert check_available(spec) == []
    assert check_combinations(spec) == []
    assert spec.name
    assert spec.purpose
    assert spec.labels


@pytest.mark.parametrize("form", ["gpu", "offline"])
@pytest.mark.parametrize("number", EXPERIMENTS)
def test_experiment_is_that_of_the_notebook(number, form):
    spec = read_job(f"experiment-{number}.{form}.json")
    samples, steps, checkpoints, stages = EXPERIMENTS[number]
    assert spec.dataset.max_samples == samples
    assert spec.training.max_steps == steps
    assert spec.checkpoints.every_steps == checkpoints
    assert plan(spec.model_dump(mode="json")) == stages
    assert (spec.training.batch_size, spec.training.gradient_accumulation) == (2, 4)
    assert (spec.lora.r, spec.lora.alpha, spec.quantization) == (16, 16, "nf4")
    assert spec.training.packing
    assert spec.labels["experiment"] == str(number)


@pytest.mark.parametrize("number", EXPERIMENTS)
def test_offline_form_needs_no_network_and_gpu_form_no_file(number):
    offline, gpu = read_job(f"experiment-{number}.offline.json"), read_job(f"experiment-{number}.gpu.json")
    assert (offline.base_model, offline.dataset.hub, offline.training.max_seq_length) == (BUILT_IN_MODEL, None, 128)
    assert (gpu.base_model, gpu.dataset.file, gpu.training.max_seq_length) == ("unsloth/Llama-3.2-1B-Instruct", None, 2048)


def test_the_page_names_every_job_file_and_the_data_that_it_reads():
    page = (EXAMPLES / "README.md").read_text()
    for path in JOB_FILES:
        assert f"`{path.name}`" in page
        file = json.loads(path.read_text())["dataset"].get("file")
        assert file is None or f"`{file}`" in page
