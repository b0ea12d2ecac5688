"""Lets peft merge what `merged` does not cover: DoRA, modules_to_save, trainable tokens, embeddings, MoE parameters …

The whole model is in memory, and the heavy imports are paid. The arithmetic is peft's own.
"""

from pathlib import Path

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from worker.exports.merged import MOST_SHARD_BYTES, misfit, not_finite


def merge(adapter: Path, base: Path, into: Path, dtype: str) -> bool:
    """Writes the merged weights as shards into a folder; returns whether input and output embeddings are tied in them.

    Raises StageFailure when the adapter does not fit the base model or is not finite.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, local_files_only=True)
    adapted = attach(model, adapter)
    untie(model)
    merged = adapted.merge_and_unload(safe_merge=True)
    merged.config.tie_word_embeddings = is_tied(merged)
    merged.generation_config = GenerationConfig()  # the base's own file is kept; saving would refuse an unusual one
    merged.save_pretrained(into, max_shard_size=MOST_SHARD_BYTES)
    for path in into.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that only their owner can read
    return is_tied(merged)


def attach(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """The model with the adapter on it; every tensor of the adapter must have found its place."""
    weights = load_peft_weights(str(adapter), device="cpu")
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise not_finite(name)
    try:
        adapted = PeftModel.from_pretrained(model, adapter)
        unused = set_peft_model_state_dict(adapted, weights).unexpected_keys  # type: ignore[attr-defined]
    except (ValueError, RuntimeError) as problem:
        raise misfit(str(problem).splitlines()[0]) from problem
    if unused:
        raise misfit(f"the base model has no place for {unused[0]}")
    return adapted


def untie(model: PreTrainedModel) -> None:
    """Gives the output layer weights of its own when LoRA changes it or the embeddings: training changed one, not both."""
    head = model.get_output_embeddings()
    if not isinstance(head, LoraLayer) and not isinstance(model.get_input_embeddings(), LoraLayer):
        return
    layer = head.get_base_layer() if isinstance(head, LoraLayer) else head
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())  # type: ignore[operator]


def is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()  # type: ignore[operator]
