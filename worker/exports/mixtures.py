"""Which type each tensor gets in a K-quantised file: the choices of llama.cpp's `llama-quantize`, for q6_k, q5_k_m and q4_k_m.

Facts from its source, src/llama-quant.cpp: the output layer, or the embeddings that stand for it, keep six bits; the mixes "_M"
give the values of attention and the projections out of the feed-forward layers six bits in the first and last eighth of the
layers and in every third between; a row that is no multiple of a block falls back to a type of smaller blocks.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace

from worker.exports.ggml import BF16, F16, F32, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, Kind
from worker.exports.gguf_header import Header, Slot, placed

MIXTURES = {"q6_k": (Q6_K, 18), "q5_k_m": (Q5_K, 17), "q4_k_m": (Q4_K, 15)}
"""The type of most tensors, and the number that llama.cpp has for the mix as `general.file_type`."""
QUANTIZATION_VERSION = 2

FALLBACKS = {Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0}
KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|altup|laurel|per_layer_model_proj|ssm_conv1d|shortconv\.conv\.weight|attn_rel_b\.weight"
    r"|time_mix_(first|[wva][012]|g[12]|decay_w[12]|lerp_fused)\.weight|^position_embd|^token_types|\.position_embd"
)
"""Matrices that stay as they are: small ones, and those that quantisation would spoil."""


@dataclass(frozen=True)
class Model:
    """What the choice depends on besides the tensors. `shares_values` is true for the shape of Llama-2-70B."""

    layers: int
    experts: int
    shares_values: bool
    tied: bool


def mixed(header: Header, quantization: str) -> Header:
    """The header of the quantised file, from that of the 16-bit file. Tensors are sorted by layer, then by name."""
    kind, number = MIXTURES[quantization]
    model = read_model(header)
    slots = sorted(header.slots, key=lambda slot: (layer_of(slot.name), slot.name))
    seen: Counter[str] = Counter()
    values = sum(1 for slot in slots if role_of(slot.name) in ("attn_v", "attn_qkv", "attn_kv_b"))
    chosen = [replace(slot, kind=choose(slot, kind, model, seen, values)) for slot in slots]
    fields = {"general.quantization_version": QUANTIZATION_VERSION, "general.file_type": number}
    return replace(header.with_fields(**fields), slots=placed(chosen))


def read_model(header: Header) -> Model:
    architecture = header.text("general.architecture")
    layers, heads, key_heads, experts = (
        header.number(f"{architecture}.{name}") or 0
        for name in ("block_count", "attention.head_count", "attention.head_count_kv", "expert_count")
    )
    tied = all(slot.name != "output.weight" for slot in header.slots)
    shares_values = layers == 80 and (architecture == "qwen2" or (architecture == "llama" and heads != key_heads))
    return Model(layers, experts, shares_values, tied)


def choose(slot: Slot, kind: Kind, model: Model, seen: Counter[str], values: int) -> Kind:
    """The type of one tensor; `seen` counts the tensors of a role so far, `values` is how many hold attention's values."""
    if len(slot.shape) < 2 or not slot.name.endswith("weight") or KEPT.search(slot.name):
        return slot.kind
    role = role_of(slot.name)
    is_mix = kind is not Q6_K
    if role == "output" or (role == "token_embd" and model.tied):
        chosen = Q6_K if slot.shape[-1] % kind.block == 0 else Q8_0
    elif role in ("attn_v", "attn_qkv", "attn_kv_b"):
        chosen = Q6_K if is_mix and deserves_more(seen["values"], values) else kind
        if chosen is Q4_K and model.shares_values:
            chosen = Q5_K
        if model.experts == 8:
            chosen = Q8_0
        seen["values"] += 1
    elif role == "attn_k" and model.experts == 8:
        chosen = Q8_0
    elif role == "ffn_down":
        layer = layer_of(slot.name) if model.experts > 1 else seen["ffn_down"]
        chosen = Q6_K if is_mix and deserves_more(layer, model.layers) else kind
        seen["ffn_down"] += 1
    elif role == "attn_output" and model.experts == 8 and kind is Q4_K:
        chosen = Q5_K
    else:
        chosen = kind
    return fitting(chosen, slot.shape[-1])


def deserves_more(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def fitting(kind: Kind, width: int) -> Kind:
    """A type whose blocks fill rows of this width."""
    if width % kind.block:
        kind = FALLBACKS.get(kind, kind)
    return F16 if width % kind.block else kind


def role_of(name: str) -> str:
    """The part of a tensor's name that says what it does, as `ffn_down` in blk.3.ffn_down.weight."""
    if name in ("output.weight", "token_embd.weight", "per_layer_token_embd.weight"):
        return "output" if name.startswith("output") else "token_embd"
    match = re.search(r"(attn_qkv|attn_kv_b|attn_v|attn_k|attn_output)\.weight|(ffn_down)", name)
    return (match[1] or match[2]) if match else ""


def layer_of(name: str) -> int:
    """-1 for what is in no layer."""
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


def plain(quantization: str) -> Kind | None:
    """The type of the file's matrices where it is not a mixture."""
    return {"f16": F16, "bf16": BF16, "q8_0": Q8_0, "f32": F32}.get(quantization)
