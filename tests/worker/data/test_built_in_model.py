import json

import gguf
import numpy as np
import pytest

from worker.data import built_in_model
from worker.data.gguf_weights import read_gguf, round_to_bfloat16, to_bfloat16
from worker.data.tokenizer import load_tokenizer

CHAT = [{"role": "user", "content": "What is 6 times 7?\n\n  x=12 é漢🙂"}]


@pytest.fixture
def quantised(tmp_path):
    """A GGUF file with one tensor of each kind, written and quantised by the reference library."""
    weights = np.random.default_rng(1).normal(size=(96, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "é", ""])
    writer.add_float32("llama.rope.freq_base", 1e5)
    kinds = {name: gguf.GGMLQuantizationType[name] for name in ("F32", "Q8_0", "Q4_1")}
    stored = {name: gguf.quantize(weights, kind) for name, kind in kinds.items()}
    for name, kind in kinds.items():
        writer.add_tensor(name, stored[name], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "small.gguf", {name: gguf.dequantize(stored[name], kind) for name, kind in kinds.items()}


def test_gguf_tensors_are_the_reference_librarys(quantised):
    path, expected = quantised
    metadata, tensors = read_gguf(path)
    assert metadata["tokenizer.ggml.tokens"] == ["a", "é", ""]
    assert metadata["llama.rope.freq_base"] == 1e5
    for name, weights in expected.items():
        ours = (to_bfloat16(tensors[name]).astype(np.uint32) << 16).view(np.float32)
        assert ours.shape == weights.shape
        # Half a unit in the last of bfloat16's eight significant bits.
        assert (np.abs(ours - weights) <= np.abs(weights) * 2.0**-8).all()


def test_rounding_is_to_nearest_even():
    bits = np.random.default_rng(2).integers(0, 2**32, size=100_000, dtype=np.uint32)
    bits[:3] = [0x3F808000, 0x3F818000, 0x3F80FFFF]
    bits = bits[(bits >> 23) & 0xFF < 0xFE]
    exact = bits.view(np.float32).astype(np.float64)
    below, above = bits >> 16, (bits >> 16) + 1
    distances = [np.abs((side << 16).view(np.float32) - exact) for side in (below, above)]
    nearest = np.where(distances[0] < distances[1], below, above)
    even = np.where(below % 2 == 0, below, above)
    expected = np.where(distances[0] == distances[1], even, nearest)
    assert (round_to_bfloat16(bits.view(np.float32).copy()) == expected).all()


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGML" + bytes(64))
    with pytest.raises(ValueError, match="not a GGUF file"):
        read_gguf(tmp_path / "x.gguf")


def test_the_tokenizer_is_a_normal_one(tmp_path):
    metadata, _ = read_gguf(built_in_model.source_file())
    for name, content in built_in_model.json_files(metadata).items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"])
    tokenizer = load_tokenizer(tmp_path)
    prompt = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt)["input_ids"]
    assert tokenizer.decode(ids) == prompt
    assert ids[0] == tokenizer.bos_token_id == 1
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length) == (2, 2, 8192)
    assert [tokenizer.decode([index]) for index in tokenizer("x=12")["input_ids"]] == ["x", "=", "1", "2"]


@pytest.mark.ml
def test_the_built_in_model_is_the_one_that_transformers_reads(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    built_in_model.build(tmp_path)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    source = built_in_model.source_file()
    theirs = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    expected = theirs.state_dict()
    assert set(ours.state_dict()) == set(expected)
    assert all(torch.equal(weights, expected[name].bfloat16()) for name, weights in ours.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.get_vocab() == load_tokenizer(tmp_path).get_vocab()
    assert tokenizer.apply_chat_template(CHAT) == load_tokenizer(tmp_path).apply_chat_template(CHAT)
    question = [{"role": "user", "content": "Name the capital of France."}]  # each token of the answer leads by far
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = ours.float().generate(**prompt, max_new_tokens=8, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(answer)
