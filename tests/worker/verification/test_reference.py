"""What files are held against is what peft and transformers compute by themselves."""

import json

import numpy as np
import pytest
import torch
from tiny_job import ALPHA, RANK, TinyJob

from worker.verification.reference import compute_logits, compute_whole
from worker.verification.weights import Weights

DOCUMENTS = [np.arange(3, 40, dtype=np.int32), np.arange(7, 12, dtype=np.int32)]


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> TinyJob:
    job = TinyJob(tmp_path_factory.mktemp("job"))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = {"task_type": "CAUSAL_LM", "target_modules": targets, "inference_mode": True}
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_rslora": False, "bias": "none"} | settings
    (job.adapter / "adapter_config.json").write_text(json.dumps(config))
    return job


def test_one_layer_at_a_time_is_what_plain_peft_computes(job):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.bfloat16)
    adapted = PeftModel.from_pretrained(model, job.adapter).merge_and_unload(safe_merge=True).float()
    streamed = compute_logits(job.base, Weights(job.base, job.adapter), DOCUMENTS, lambda message: None)
    whole = compute_whole(job.base, job.adapter, DOCUMENTS)
    for document, ours, theirs in zip(DOCUMENTS, streamed, whole, strict=True):
        with torch.no_grad():
            expected = adapted(torch.from_numpy(document.astype(np.int64))[None]).logits[0].numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-4)
        np.testing.assert_allclose(theirs, expected, atol=1e-4)


def test_the_merged_folder_in_plain_transformers_is_the_same(job):
    from transformers import AutoModelForCausalLM

    job.write_merged()
    model = AutoModelForCausalLM.from_pretrained(job.folder / "merge" / "merged", dtype=torch.float32)
    streamed = compute_logits(job.base, Weights(job.base, job.adapter), DOCUMENTS, lambda message: None)
    for document, ours in zip(DOCUMENTS, streamed, strict=True):
        with torch.no_grad():
            expected = model(torch.from_numpy(document.astype(np.int64))[None]).logits[0].numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-4)
