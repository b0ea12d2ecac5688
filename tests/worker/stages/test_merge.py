import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode, Stage
from worker.exports import merged as merged_weights
from worker.exports.shards import read_entries
from worker.stages import Inputs, Report, StageFailure
from worker.stages.merge import run

SIZES = {"hidden_size": 64, "intermediate_size": 112, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"num_hidden_layers": 2, "vocab_size": 200, "max_position_embeddings": 64}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def models(tmp_path):
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def save_base(models: Path, *, dtype=torch.bfloat16, tied=True, kind=LlamaForCausalLM, shard="1GB", **sizes) -> Path:
    torch.manual_seed(1)
    config = {LlamaForCausalLM: LlamaConfig, Qwen2ForCausalLM: Qwen2Config}[kind](**SIZES | sizes, tie_word_embeddings=tied)
    model = kind(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    base = models / "tiny"
    model.to(dtype).save_pretrained(base, max_shard_size=shard)
    (base / "chat_template.jinja").write_text(TEMPLATE)
    (base / "tokenizer.json").write_text('{"version": "1.0"}')
    (base / "modeling_tiny.py").write_text("raise SystemExit")
    (base / "README.md").write_text("---\nlicense: mit\nbase_model: someone/tiny\ntags: [x]\n---\n# Tiny\n")
    return base


def save_adapter(base: Path, folder: Path, **settings) -> Path:
    """A peft adapter with random weights: `folder`/adapter."""
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(
        model, LoraConfig(**{"target_modules": LINEAR, "r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | settings)
    )
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder / "adapter")
    return folder


def merge(models: Path, trained: Path, out: Path):
    out.mkdir()
    spec = JobSpec(base_model="tiny", dataset={"file": "file-1"}, exports=[{"kind": "merged"}])
    inputs = Inputs(
        cache_dir=models.parent / "cache",
        models_dir=models,
        converter_dir=models,
        title="My model",
        folders={Stage.TRAIN: trained, Stage.PREPARE: trained.parent / "prepare"},
        values={Stage.PREPARE: {"base_model": {"revision": None}}},
    )
    return run(spec, inputs, out, Report(out / "events.jsonl"))


def by_peft(base: Path, trained: Path, dtype) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, trained / "adapter").merge_and_unload(safe_merge=True).state_dict()


def assert_same(found: Path, expected: dict[str, torch.Tensor], dtype) -> None:
    state = AutoModelForCausalLM.from_pretrained(found, dtype="auto").state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == dtype
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize(
    ("stored", "merged", "settings", "model"),
    [
        (torch.bfloat16, torch.bfloat16, {}, {"tied": True}),
        (torch.float16, torch.float16, {"use_rslora": True}, {"tied": False, "shard": "60KB"}),
        (torch.float32, torch.bfloat16, {}, {"tied": False, "shard": "100KB"}),
        (torch.bfloat16, torch.bfloat16, {"target_modules": ["q_proj", "v_proj"], "r": 8}, {"kind": Qwen2ForCausalLM}),
    ],
    ids=["bf16 tied", "fp16 several shards rslora", "fp32 several shards", "qwen2 with biases"],
)
def test_it_is_bit_identical_to_peft(models, tmp_path, stored, merged, settings, model):
    base = save_base(models, dtype=stored, **model)
    trained = save_adapter(base, tmp_path / "train", **settings)
    outcome = merge(models, trained, tmp_path / "out")
    assert outcome.values == {"merged": "merged", "method": "stream", "dtype": str(merged).removeprefix("torch.")}
    assert_same(tmp_path / "out/merged", by_peft(base, trained, merged), merged)
    assert len(list((tmp_path / "out/merged").glob("*.safetensors"))) == len(list(base.glob("*.safetensors")))


def test_no_file_of_the_merged_model_is_larger_than_need_be(models, tmp_path, monkeypatch):
    monkeypatch.setattr(merged_weights, "MOST_SHARD_BYTES", 50_000)
    base = save_base(models, dtype=torch.float32, tied=False)
    trained = save_adapter(base, tmp_path / "train")
    merge(models, trained, tmp_path / "out")
    assert [path.name for path in base.glob("*.safetensors")] == ["model.safetensors"]
    shards = sorted((tmp_path / "out/merged").glob("*.safetensors"))
    sizes = [sum(entry.bytes for entry in read_entries(path)) for path in shards]
    assert len(shards) > 2 and shards[-1].name == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    assert all(size <= 50_000 or len(read_entries(path)) == 1 for size, path in zip(sizes, shards, strict=True))
    assert_same(tmp_path / "out/merged", by_peft(base, trained, torch.bfloat16), torch.bfloat16)


def test_the_folder_is_complete_and_hashed(models, tmp_path):
    base = save_base(models, shard="60KB")
    config = json.loads((base / "config.json").read_text())
    outcome = merge(models, save_adapter(base, tmp_path / "train"), tmp_path / "out")
    folder = tmp_path / "out/merged"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json", "README.md"}
    assert not [name for name in names if name.endswith(".py")]
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    assert json.loads((folder / "config.json").read_text()) == config
    card = (folder / "README.md").read_text()
    assert "license: mit\n" in card and "base_model: someone/tiny\n" in card and "# My model\n" in card
    assert {file.name for file in outcome.files} == {f"merged/{name}" for name in names}
    for file in outcome.files:
        content = (tmp_path / "out" / file.path).read_bytes()
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert file.kind == "merged"
        assert (tmp_path / "out" / file.path).stat().st_mode & 0o444 == 0o444
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    stored = [entry for path in folder.glob("*.safetensors") for entry in read_entries(path)]
    assert index["metadata"]["total_size"] == sum(entry.bytes for entry in stored)
    assert index["weight_map"].keys() == {entry.name for entry in stored}


def test_a_template_that_the_base_lacks_comes_from_prepare(models, tmp_path):
    base = save_base(models)
    (base / "chat_template.jinja").unlink()
    trained = save_adapter(base, tmp_path / "train")
    (tmp_path / "prepare").mkdir()
    (tmp_path / "prepare" / "chat_template.jinja").write_text("plain")
    outcome = merge(models, trained, tmp_path / "out")
    assert (tmp_path / "out/merged/chat_template.jinja").read_text() == "plain"
    assert "merged/chat_template.jinja" in {file.name for file in outcome.files}


def test_what_a_16_bit_base_keeps_in_fp32_stays_so(models, tmp_path):
    base = save_base(models)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].float() + 1e-6
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    merge(models, save_adapter(base, tmp_path / "train"), tmp_path / "out")
    kept = load_file(tmp_path / "out/merged/model.safetensors")["model.norm.weight"]
    assert kept.dtype == torch.float32 and torch.equal(kept, weights["model.norm.weight"])


def edit_adapter(trained: Path, edit) -> None:
    path = trained / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("key", ["layers.7.self_attn.q_proj", "layers.0.self_attn.qkv_proj"])
def test_an_adapter_tensor_without_a_place_is_refused(models, tmp_path, key):
    base = save_base(models)
    trained = save_adapter(base, tmp_path / "train")
    stray = {
        f"base_model.model.model.{key}.lora_A.weight": torch.ones(4, 64),
        f"base_model.model.model.{key}.lora_B.weight": torch.ones(64, 4),
    }
    edit_adapter(trained, lambda tensors: tensors.update(stray))
    with pytest.raises(StageFailure, match="no place for") as failure:
        merge(models, trained, tmp_path / "out")
    assert (failure.value.code, failure.value.param) == (FailureCode.MODEL_UNSUPPORTED, "base_model")


def test_an_adapter_of_another_shape_is_refused(models, tmp_path):
    trained = save_adapter(save_base(models), tmp_path / "train")
    (models / "tiny").rename(tmp_path / "first")
    save_base(models, intermediate_size=128)
    with pytest.raises(StageFailure, match="does not fit") as failure:
        merge(models, trained, tmp_path / "out")
    assert failure.value.code == FailureCode.MODEL_UNSUPPORTED


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["stream", "peft"])
def test_an_adapter_that_is_not_finite_is_refused(models, tmp_path, settings):
    trained = save_adapter(save_base(models), tmp_path / "train", **settings)
    edit_adapter(trained, lambda tensors: tensors[min(tensors)].fill_(math.nan))
    with pytest.raises(StageFailure, match="not finite") as failure:
        merge(models, trained, tmp_path / "out")
    assert failure.value.code == FailureCode.NAN_LOSS


@pytest.mark.parametrize(
    ("settings", "tied"),
    [
        ({"use_dora": True}, True),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"target_modules": ["q_proj", "lm_head"]}, False),
        ({"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"v_proj": 2}}, True),
        ({"bias": "all"}, True),
        ({"target_modules": ["q_proj"], "target_parameters": ["mlp.down_proj.weight"]}, True),
    ],
    ids=["dora", "modules_to_save", "lm_head", "patterns", "bias", "target_parameters"],
)
def test_peft_merges_what_is_more_than_a_sum(models, tmp_path, settings, tied):
    base = save_base(models, tied=tied)
    trained = save_adapter(base, tmp_path / "train", **settings)
    outcome = merge(models, trained, tmp_path / "out")
    assert outcome.values["method"] == "peft"
    assert_same(tmp_path / "out/merged", by_peft(base, trained, torch.bfloat16), torch.bfloat16)
    assert all((tmp_path / "out" / file.path).stat().st_mode & 0o444 == 0o444 for file in outcome.files)


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"trainable_token_indices": [3, 5]},
    ],
    ids=str,
)
def test_tied_embeddings_answer_as_they_did_in_training(models, tmp_path, settings):
    base = save_base(models, dtype=torch.float32)
    trained = save_adapter(base, tmp_path / "train", **settings)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), trained / "adapter")
    tokens = torch.arange(0, 40).view(2, 20)
    merge(models, trained, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out/merged", dtype="auto")
    with torch.no_grad():
        trained_logits = adapted.float()(tokens).logits
        base_logits = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(tokens).logits
        rounding = (merged.float()(tokens).logits - trained_logits).abs().max()
        assert rounding < (trained_logits - base_logits).abs().max() / 20


def peak_bytes(models: Path, trained: Path, attempt: Path) -> int:
    """The peak memory of the stage as its own process."""
    inputs = Inputs(
        cache_dir=models.parent / "cache",
        models_dir=models,
        converter_dir=models,
        title="m",
        folders={Stage.TRAIN: trained, Stage.PREPARE: trained.parent / "prepare"},
        values={Stage.PREPARE: {"base_model": {"revision": None}}},
    )
    spec = {"base_model": "tiny", "dataset": {"file": "file-1"}, "exports": [{"kind": "merged"}]}
    attempt.mkdir()
    (attempt / "input.json").write_text(json.dumps({"stage": "merge", "spec": spec, "inputs": inputs.to_json()}))
    root = Path(__file__).parents[3]
    # a shell between, because a process starts with the peak of the one that it was forked from
    command = 'echo "{}" | "$0" -m worker.stages "$1"; exit $?'
    subprocess.run(["sh", "-c", command, sys.executable, attempt], cwd=root, check=True)
    result = json.loads((attempt / "result.json").read_text())
    assert result["status"] == "succeeded" and result["values"]["method"] == "stream"
    return result["peak_host_bytes"]


def test_memory_does_not_grow_with_the_model(models, tmp_path):
    base = save_base(models)
    small = peak_bytes(models, save_adapter(base, tmp_path / "small"), tmp_path / "first")
    base.rename(tmp_path / "tiny")
    base = save_base(models, tied=False, hidden_size=512, intermediate_size=1408, num_hidden_layers=27, shard="20MB")
    shards = [path.stat().st_size for path in base.glob("*.safetensors")]
    assert len(shards) > 5
    large = peak_bytes(models, save_adapter(base, tmp_path / "large"), tmp_path / "second")
    assert large - small < 2 * max(shards) < sum(shards) / 3
