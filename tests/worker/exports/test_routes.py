"""What the one pass does not cover: an adapter that is more than a sum, and an architecture that was not compared."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny_export import SIZES, save_adapter, save_base, stream
from transformers import AutoModelForCausalLM, Starcoder2Config

from worker.exports import ggml
from worker.exports.gguf_header import read_header
from worker.verification.llama import Llama

PARTS = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
PARTS |= {"attn_output": "self_attn.o_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}


def read_tensors(path: Path) -> dict[str, bytes]:
    header, data = read_header(path), path.read_bytes()
    start = len(header.to_bytes())
    return {slot.name: data[start + slot.offset :][: slot.bytes] for slot in header.slots}


@pytest.mark.ml
def test_peft_merges_and_the_converter_writes_what_the_pass_does_not_cover(built_in, tmp_path):
    sizes = SIZES | {"intermediate_size": 512}
    config = Starcoder2Config(**sizes, vocab_size=49152, bos_token_id=1, eos_token_id=2)
    base = save_base(tmp_path, built_in, config, torch.bfloat16, "1GB")
    trained = save_adapter(base, tmp_path / "train", use_dora=True, target_modules=["q_proj", "v_proj", "c_fc"])
    outcome = stream(tmp_path, trained, tmp_path / "out", "q6_k", "bf16")
    events = map(json.loads, (tmp_path / "out/events.jsonl").read_text().splitlines())
    assert [event["code"] for event in events if event["kind"] == "warning"] == ["merged_by_peft", "converter_route"]
    assert outcome.values["route"] == "converter"
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == ["gguf"]

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, trained / "adapter").merge_and_unload(safe_merge=True)
    weights = merged.state_dict()
    mixture, whole = (read_tensors(tmp_path / "out" / file.path) for file in outcome.files)
    for layer in range(SIZES["num_hidden_layers"]):
        for part, module in PARTS.items():
            expected = weights[f"model.layers.{layer}.{module}.weight"]
            name = f"blk.{layer}.{part}.weight"
            assert whole[name] == expected.view(torch.uint8).numpy().tobytes(), name
            assert mixture[name] == ggml.quantize(expected.float().numpy(), ggml.Q6_K).tobytes(), name

    document = np.arange(100, 130, dtype=np.int32)
    with torch.no_grad():
        expected = merged.float()(torch.from_numpy(document.astype(np.int64))[None]).logits[0].numpy()
    with Llama(tmp_path / "out" / outcome.files[1].path) as llama:
        [found] = (np.array(logits) for logits in llama.logits([document]))
        assert np.abs(found - expected).mean() < np.abs(expected).mean() / 50
