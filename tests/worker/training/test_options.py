"""What may be asked of an adapter and of how the base is held: it trains, goes on after a stop, and is what gets merged."""

import dataclasses
import json

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors.torch import load_file
from test_trl_engine import reference_loss
from tiny_run import events, losses, make_inputs, make_spec, run_here, save_base
from transformers import AutoModelForCausalLM

from app.jobs.states import FailureCode
from worker.data.plan import Plan
from worker.stages import Report, StageFailure, merge
from worker.training import ATTENTION
from worker.training.adapter_modules import check_modules, empty_model
from worker.training.device import open_device
from worker.training.model import DTYPES, attach_adapter, load_base

TIED = {"tie_word_embeddings": True}
ADAPTERS = {
    "rslora": ({"lora": {"variant": "rslora"}}, {}),
    "dora": ({"lora": {"variant": "dora"}}, {}),
    "suffixes": ({"lora": {"target_modules": ["q_proj", "mlp.up_proj", "model.layers.1.mlp.down_proj"]}}, {}),
    "head": ({"lora": {"modules_to_save": ["lm_head"]}}, {}),
    "tied head": ({"lora": {"modules_to_save": ["lm_head"]}}, TIED),
    "tied embeddings": ({"lora": {"modules_to_save": ["embed_tokens"]}}, TIED),
    "all that is not linear": ({"lora": {"modules_to_save": ["norm", "input_layernorm", "lm_head", "embed_tokens"]}}, {}),
}


def inputs_with(folder, **options):
    inputs = make_inputs(folder, validation=True)
    if options:
        save_base(folder / "models" / "tiny", **options)
    return inputs


def merge_here(spec, inputs, attempt, folder):
    """The merged model's folder."""
    (folder / "out").mkdir(parents=True)
    after = dataclasses.replace(inputs, folders=inputs.folders | {"train": attempt / "out"})
    merge.run(spec, after, folder / "out", Report(folder / "events.jsonl"))
    return folder / "out" / "merged"


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_learns_goes_on_and_is_merged_as_it_was_trained(tmp_path, name):
    more, options = ADAPTERS[name]
    inputs = inputs_with(tmp_path, **options)
    base = tmp_path / "models" / "tiny"
    spec = make_spec(more | {"quantization": "none", "checkpoints": {"every_steps": 3}}, max_steps=8, learning_rate=0.02)
    run_here(spec, inputs, tmp_path / "1")
    summary = events(tmp_path / "1", "summary")[-1]
    assert losses(tmp_path / "1")[8] < 0.9 * losses(tmp_path / "1")[1]
    assert summary["eval_loss"] != pytest.approx(summary["eval_loss_base"], rel=0.01)

    (tmp_path / "1" / "out" / "checkpoints" / "step-000006").rename(tmp_path / "6")
    again = run_here(spec, dataclasses.replace(inputs, earlier=[tmp_path / "1" / "out"]), tmp_path / "2")
    assert again.values["resumed_from_step"] == 3
    assert losses(tmp_path / "2") == {step: loss for step, loss in losses(tmp_path / "1").items() if step > 3}
    first, second = (tmp_path / attempt / "out" / "adapter" / "adapter_model.safetensors" for attempt in "12")
    assert first.read_bytes() == second.read_bytes()

    plan = Plan.open(inputs.folders["prepare"] / "validation")
    rows = [plan.row(index) for index in range(plan.rows)]
    trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), first.parent)
    with torch.no_grad():
        assert reference_loss(trained, rows).item() == pytest.approx(summary["eval_loss"], rel=1e-4)
        merged = AutoModelForCausalLM.from_pretrained(merge_here(spec, inputs, tmp_path / "1", tmp_path / "merging"))
        assert reference_loss(merged.float(), rows).item() == pytest.approx(summary["eval_loss"], rel=0.01)
    untied = [event for event in events(tmp_path / "1", "warning") if event["code"] == "embeddings_untied"]
    assert len(untied) == (options == TIED)


def test_the_adapter_is_the_one_that_was_asked_for(tmp_path):
    inputs = make_inputs(tmp_path)
    lora = {"variant": "dora", "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}
    run_here(make_spec({"lora": lora}, max_steps=1), inputs, tmp_path / "1")
    folder = tmp_path / "1" / "out" / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"]) == (True, False)
    assert (config["target_modules"], config["modules_to_save"]) == (["q_proj", "v_proj"], ["embed_tokens", "lm_head"])
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    kinds = {key.split("layers.")[-1] for key in tensors if "layers.0" in key}
    parts = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    assert kinds == {f"0.self_attn.{module}.{part}" for module in ("q_proj", "v_proj") for part in parts}
    assert {key for key in tensors if "layers" not in key} == {
        "base_model.model.lm_head.weight",
        "base_model.model.model.embed_tokens.weight",
    }


@pytest.mark.parametrize("memory", ["speed", "balanced"])
@pytest.mark.parametrize(
    ("quantization", "variant"), [("int8", "lora"), ("nf4", "dora"), ("none", "lora"), ("none", "dora"), ("nf4", "lora")]
)
def test_the_base_may_be_held_in_4_8_or_16_bits(tmp_path, quantization, variant, memory):
    spec = make_spec(
        {"quantization": quantization, "lora": {"variant": variant}}, max_steps=6, learning_rate=0.02, memory=memory
    )
    run_here(spec, make_inputs(tmp_path), tmp_path / "1")
    assert losses(tmp_path / "1")[6] < 0.9 * losses(tmp_path / "1")[1]


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_all_that_is_trained_is_fp32_whatever_the_base_is(tmp_path, quantization, precision):
    make_inputs(tmp_path)
    lora = {"variant": "dora", "modules_to_save": ["norm", "lm_head", "embed_tokens"]}
    spec = make_spec({"quantization": quantization, "lora": lora}, precision=precision, memory="balanced")
    model = attach_adapter(load_base(tmp_path / "models" / "tiny", spec, open_device(None)), spec, "1")
    trained = {name: weight.dtype for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} >= {"weight"} and len(trained) > 40
    assert set(trained.values()) == {torch.float32}
    dtype = DTYPES[precision]
    for module in model.modules():
        if isinstance(module, Linear4bit):
            assert module.compute_dtype == module.weight.quant_state.dtype == dtype
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} <= {dtype, torch.uint8, torch.int8}
    assert model.config._attn_implementation == ATTENTION


@pytest.mark.parametrize(
    ("lora", "param", "named"),
    [
        ({"target_modules": ["q_proj", "q_prj"]}, "lora.target_modules", "'q_prj'"),
        ({"target_modules": ["lm_head"]}, "lora.target_modules", "'lm_head'"),
        ({"target_modules": ["embed_tokens"]}, "lora.target_modules", "down_proj, gate_proj, k_proj"),
        ({"modules_to_save": ["wte"]}, "lora.modules_to_save", "embed_tokens, input_layernorm, lm_head, norm"),
        ({"modules_to_save": ["lm_head", "q_proj"]}, "lora.modules_to_save", "'q_proj'"),
    ],
)
def test_names_that_the_model_does_not_have_are_refused_with_those_that_it_has(tmp_path, lora, param, named):
    save_base(tmp_path / "tiny")
    model = empty_model(tmp_path / "tiny")
    with pytest.raises(StageFailure, match=named) as failure:
        check_modules(model, make_spec({"lora": lora}))
    assert (failure.value.code, failure.value.param) == (FailureCode.INVALID_SPEC, param)
    check_modules(model, make_spec(failure.value.patch))
