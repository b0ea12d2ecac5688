"""The GGUF files against llama.cpp's own two steps: a merged folder, and its converter."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PretrainedConfig

from app.jobs.spec import BUILT_IN_MODEL, JobSpec
from app.jobs.states import Stage
from worker.data import base_models
from worker.data.gguf_weights import read_gguf
from worker.stages import Inputs, Outcome, Report
from worker.stages.convert import run as convert
from worker.stages.merge import run as merge

CONVERTER = Path(sys.prefix) / "share/tunesmith/llama.cpp"
TITLE = "Parity"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {"hidden_size": 256, "intermediate_size": 288, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 256}
LLAMA_3_ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3_ROPE |= {"original_max_position_embeddings": 128}


@pytest.fixture(scope="module")
def built_in(tmp_path_factory) -> Path:
    place = {"cache_dir": tmp_path_factory.mktemp("cache"), "models_dir": None}
    return base_models.fetch(BUILT_IN_MODEL, None, **place, report=lambda *_, **__: None).path


def save_base(models: Path, tokenizer: Path, config: PretrainedConfig, dtype: torch.dtype, shard: str) -> Path:
    """A small random model with the built-in model's tokenizer."""
    torch.manual_seed(1)
    base = models / "tiny"
    shutil.copytree(tokenizer, base, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.to(dtype).save_pretrained(base, max_shard_size=shard)
    return base


def save_adapter(base: Path, folder: Path, **settings) -> Path:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = {"target_modules": LINEAR, "r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | settings
    adapted = get_peft_model(model, LoraConfig(**config))
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(folder / "adapter")
    return folder


def make_inputs(models: Path, trained: Path, **more) -> Inputs:
    folders = {Stage.TRAIN: trained, Stage.PREPARE: trained.parent / "prepare"} | more.get("folders", {})
    values = {Stage.PREPARE: {"base_model": {"revision": None}}} | more.get("values", {})
    place = {"cache_dir": models, "models_dir": models, "converter_dir": CONVERTER}
    return Inputs(**place, title=TITLE, folders=folders, values=values)


def make_spec(*quantizations: str, base: str = "tiny") -> JobSpec:
    exports = [{"kind": "gguf", "quantization": quantization} for quantization in quantizations]
    return JobSpec(base_model=base, dataset={"file": "file-1"}, exports=exports)


def stream(models: Path, trained: Path, out: Path, *quantizations: str, base: str = "tiny") -> Outcome:
    out.mkdir()
    return convert(make_spec(*quantizations, base=base), make_inputs(models, trained), out, Report(out / "events.jsonl"))


def by_llama_cpp(models: Path, trained: Path, out: Path, *quantizations: str, base: str = "tiny") -> dict[str, bytes]:
    """The files by quantisation: a merged folder, and the converter as anybody would run it."""
    out.mkdir()
    merge(make_spec("f16", base=base), make_inputs(models, trained), out, Report(out / "events.jsonl"))
    files = {}
    for quantization in quantizations:
        path = out / f"{quantization}.gguf"
        run_converter(out / "merged", path, quantization)
        files[quantization] = path.read_bytes()
    return files


def run_converter(model: Path, path: Path, quantization: str) -> None:
    command = [sys.executable, CONVERTER / "convert_hf_to_gguf.py", "--outfile", path, "--outtype", quantization]
    environment = {"PYTHONPATH": str(CONVERTER), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--model-name", TITLE, model], env=environment, check=True, capture_output=True)


@pytest.mark.ml
@pytest.mark.parametrize(
    ("config", "dtype", "shard", "quantizations"),
    [
        (LlamaConfig(**SIZES, rope_parameters=LLAMA_3_ROPE, tie_word_embeddings=True), torch.bfloat16, "1GB", ["q8_0", "f16"]),
        (LlamaConfig(**SIZES, tie_word_embeddings=False), torch.float16, "4MB", ["bf16"]),
        (MistralConfig(**SIZES, tie_word_embeddings=False), torch.float32, "4MB", ["q8_0"]),
    ],
    ids=["llama 3", "fp16 untied shards", "mistral fp32 shards"],
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


@pytest.mark.ml
def test_the_adapter_alone_has_its_factors_under_llama_cpps_names(built_in, tmp_path):
    config = LlamaConfig(**SIZES, vocab_size=49152, bos_token_id=1, eos_token_id=2)
    base = save_base(tmp_path, built_in, config, torch.bfloat16, "1GB")
    trained = save_adapter(base, tmp_path / "train", use_rslora=True)
    spec = JobSpec(base_model="tiny", dataset={"file": "file-1"}, exports=[{"kind": "lora_gguf", "type": "f32"}])
    [file] = convert(spec, make_inputs(tmp_path, trained), tmp_path, Report(tmp_path / "events.jsonl")).files
    assert file.name == "lora_gguf/Parity-lora-f32.gguf"
    metadata, tensors = read_gguf(tmp_path / file.path)
    assert (metadata["general.type"], metadata["adapter.type"], metadata["adapter.lora.alpha"]) == (
        "adapter",
        "lora",
        6 * 4**0.5,
    )
    factors = load_file(trained / "adapter/adapter_model.safetensors")
    assert len(tensors) == len(factors)
    for ours, theirs, heads in [
        ("attn_q", "self_attn.q_proj", 4),
        ("attn_k", "self_attn.k_proj", 2),
        ("ffn_up", "mlp.up_proj", 0),
    ]:
        a, b = (factors[f"base_model.model.model.layers.2.{theirs}.lora_{half}.weight"].numpy() for half in "AB")
        if heads:  # llama.cpp has the two halves of a head interleaved
            b = b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)
        for name, expected in (("lora_a", a), ("lora_b", b)):
            tensor = tensors[f"blk.2.{ours}.weight.{name}"]
            assert np.array_equal(tensor.raw.view(np.float32).reshape(tensor.shape), expected), ours
