"""The GGUF files against llama.cpp's own two steps: a merged folder, and its converter."""

import pytest
import torch
from tiny_export import LLAMA_3_ROPE, SIZES, by_llama_cpp, save_adapter, save_base, stream
from transformers import LlamaConfig, MistralConfig, Qwen3Config


@pytest.mark.ml
@pytest.mark.parametrize(
    ("config", "dtype", "shard", "quantizations"),
    [
        (LlamaConfig(**SIZES, rope_parameters=LLAMA_3_ROPE, tie_word_embeddings=True), torch.bfloat16, "1GB", ["q8_0", "f16"]),
        (MistralConfig(**SIZES, tie_word_embeddings=False), torch.float16, "4MB", ["bf16"]),
        (Qwen3Config(**SIZES, attention_bias=True, tie_word_embeddings=False), torch.float32, "4MB", ["q8_0"]),
    ],
    ids=["llama 3", "mistral fp16 untied shards", "qwen 3 fp32 untied shards"],
)
def test_files_are_those_of_the_converter(built_in, tmp_path, config, dtype, shard, quantizations):
    config.update({"vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2})
    base = save_base(tmp_path, built_in, config, dtype, shard)
    trained = save_adapter(base, tmp_path / "train")
    outcome = stream(tmp_path, trained, tmp_path / "ours", *quantizations)
    assert outcome.values["route"] == "stream"
    expected = by_llama_cpp(tmp_path, trained, tmp_path / "theirs", *quantizations)
    for file, quantization in zip(outcome.files, quantizations, strict=True):
        assert (tmp_path / "ours" / file.path).read_bytes() == expected[quantization], quantization
