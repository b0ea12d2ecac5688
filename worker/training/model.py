"""The base model as a device holds it, and the adapter on top."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode
from worker.stages import StageFailure
from worker.training import ATTENTION
from worker.training.adapter_modules import check_modules
from worker.training.batches import Batch
from worker.training.device import Device
from worker.training.loss import cross_entropies, score
from worker.training.low_rank_sum import round_once

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ADAPTER_FILE = "adapter_model.safetensors"


def load_base(folder: Path, spec: JobSpec, device: Device) -> PreTrainedModel:
    """The frozen base, each weight quantised as it arrives on the device.

    Its other weights are in the compute format, not in fp32 as peft's prepare_model_for_kbit_training would have them: that
    costs a gigabyte for a vocabulary of 128k and buys nothing, as normalisation and the loss compute in fp32 anyway.
    """
    dtype = DTYPES[spec.training.precision]
    disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device.torch},
            quantization_config=quantization(spec.quantization, dtype),
            attn_implementation=ATTENTION,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except ValueError as problem:
        raise unsupported(spec, "transformers cannot load it for training; the stage's log says why") from problem
    model, found = loaded
    if found["missing_keys"] or found["mismatched_keys"]:
        raise unsupported(spec, "its files lack some of the architecture's weights")
    for weight in model.parameters():
        if getattr(weight, "quant_state", None) is not None:
            weight.quant_state.dtype = dtype  # what the backward pass dequantises to, else the checkpoint file's own
    model.requires_grad_(False)
    # Its own may sample or penalise repetition, which would decide the held-out answers.
    model.generation_config = GenerationConfig(do_sample=False)
    if spec.training.memory != "speed":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    elif not device.is_cuda:
        keep_dequantised(model)
    return model


def keep_dequantised(model: PreTrainedModel) -> None:
    """Replaces each 4-bit layer by a plain one with the very weights that it would dequantise to in every pass. On a CPU that
    is a seventh of a step's time, and most of the time of an answer, for seven times the memory of the 4-bit weights."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear4bit):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
                weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)  # type: ignore[attr-defined]
                plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), layer.bias
                setattr(parent, name, plain)


def quantization(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if kind == "none":
        return None
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def unsupported(spec: JobSpec, reason: str) -> StageFailure:
    message = f"{spec.base_model} cannot be trained here: {reason}. Choose another base model."
    return StageFailure(FailureCode.MODEL_UNSUPPORTED, message, param="base_model")


def attach_adapter(model: PreTrainedModel, spec: JobSpec, revision: str) -> PeftModel:
    """A fresh adapter, seeded by training.seed, in fp32. StageFailure when the spec names modules that are not there."""
    check_modules(model, spec)
    lora = spec.lora
    torch.manual_seed(spec.training.seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=sorted(lora.modules_to_save) or None,
        use_rslora=lora.variant == "rslora",
        use_dora=lora.variant == "dora",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    dtype = DTYPES[spec.training.precision]
    hold_exactly(adapted, dtype)
    if dtype == torch.bfloat16:
        round_once(adapted, dtype)
    # The published config names the base as the user did, and in an order that does not change from run to run.
    found: Any = adapted.peft_config["default"]
    found.base_model_name_or_path, found.revision = spec.base_model, revision
    found.target_modules = sorted(found.target_modules)
    return adapted


def hold_exactly(model: PeftModel, dtype: torch.dtype) -> None:
    """Makes all that is trained fp32: peft does so with the parts of an adapter, not with modules that are trained whole. What
    these hand on is in the compute format again, or all that follows would be fp32."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.register_forward_hook(lambda module, inputs, output: output.to(dtype))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def save_adapter(model: PeftModel, folder: Path) -> None:
    """adapter_model.safetensors in fp32 and adapter_config.json, readable by everybody: safetensors makes files 0600."""
    save_file(adapter_tensors(model), folder / ADAPTER_FILE)
    (folder / ADAPTER_FILE).chmod(0o644)
    model.peft_config["default"].save_pretrained(str(folder))


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """A copy of the adapter, fp32 in host memory, by the names that it has in a file."""
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().to("cpu", torch.float32, copy=True).contiguous() for name, tensor in tensors.items()}


def load_adapter(model: PeftModel, folder: Path) -> None:
    """ValueError unless the file holds this very adapter."""
    set_adapter(model, load_file(folder / ADAPTER_FILE))


def set_adapter(model: PeftModel, tensors: dict[str, Tensor]) -> None:
    """ValueError unless the tensors are those of this very adapter; peft takes what it knows and leaves the rest as it is."""
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    if {name: tensor.shape for name, tensor in tensors.items()} != {name: tensor.shape for name, tensor in expected.items()}:
        raise ValueError(
            "its tensors are those of another adapter"
        )  # peft would take what it knows and leave the rest as it is
    set_peft_model_state_dict(model, tensors)


def last_hidden(model: PeftModel, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """[batch, tokens, width] after the final norm. Positions that start again at 0 start a document that sees only itself:
    transformers makes the block mask from them, but only when there is no cache and no other mask."""
    backbone: Any = model.get_base_model().base_model
    return backbone(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state


def target_losses(model: PeftModel, batch: Batch) -> Tensor:
    """-log p of each target of a batch that is on the model's device, fp32 [trained]."""
    return cross_entropies(predicting(model, batch), model.get_output_embeddings().weight, batch["targets"])


def target_scores(model: PeftModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The same without a gradient, and whether the target was the likeliest token, bool [trained]."""
    return score(predicting(model, batch), model.get_output_embeddings().weight, batch["targets"])


def predicting(model: PeftModel, batch: Batch) -> Tensor:
    """The last hidden states of the tokens that predict a target, [trained, width]."""
    hidden = last_hidden(model, batch["input_ids"], batch["position_ids"])
    return hidden.flatten(0, 1).index_select(0, batch["sources"])


def autocast(precision: str, device: Device) -> AbstractContextManager:
    """Computes in the run's format although the adapters are fp32."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.torch.type, dtype=DTYPES[precision])


@contextmanager
def evaluating(model: PeftModel, precision: str, device: Device, *, adapter: bool) -> Iterator[None]:
    """No dropout, no gradients, with the adapter or as if it were not there."""
    model.eval()
    for module in model.modules():
        # In eval mode bitsandbytes repacks a 4-bit weight for a coarser product on some CPUs, and training would go on with it.
        if type(module).__module__.startswith("bitsandbytes"):
            module.training = True
    with torch.no_grad(), autocast(precision, device), nullcontext() if adapter else model.disable_adapter():
        yield
    model.train()


def check_head(model: PeftModel, spec: JobSpec, device: Device) -> None:
    """StageFailure unless the logits are the last hidden state times the head's weight, nothing else: that is what the loss
    computes. A model that scales, caps or shifts them would train on the wrong numbers."""
    ids = torch.arange(16, device=device.torch)[None]
    with evaluating(model, spec.training.precision, device, adapter=True):
        expected = model(input_ids=ids, use_cache=False).logits.float()
        found = (last_hidden(model, ids, ids) @ model.get_output_embeddings().weight.T).float()
    tolerance = 0.05 * float(expected.abs().nan_to_num().max())
    if not torch.allclose(found, expected, rtol=0.05, atol=tolerance, equal_nan=True):
        raise unsupported(spec, "its logits are more than a product with its output head, which is not available yet")
