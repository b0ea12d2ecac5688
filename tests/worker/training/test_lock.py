import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import make_inputs, make_spec, run_here

from worker.data.base_models import BaseModel
from worker.data.plan import Plan
from worker.stages.train import settle
from worker.training.device import Device
from worker.training.lock import RULES, Rule, compare, hash_base, hash_template, make_lock, rule_of

OPERATIONS = Path(__file__).resolve().parents[3] / "docs" / "operations.md"


@pytest.fixture
def lock(tmp_path):
    return lock_of(tmp_path)


def lock_of(folder, more=None, *, capability=None, held_out="a", **training):
    inputs = make_inputs(folder)
    device = Device(torch.device("cpu"), "cpu", capability, 2**30)
    base = BaseModel("tiny", "r1", inputs.models_dir / "tiny")
    plan = Plan.open(inputs.folders["prepare"] / "plan")
    spec, _ = settle(make_spec(more, **training), device, base.path)
    return make_lock(spec, plan, base, device, held_out=held_out, attention="sdpa")


def test_every_item_has_a_rule_and_every_rule_an_item(lock):
    groups = {item.partition(".")[0] for item in lock}
    assert {rule.partition(".")[0] for rule in RULES} == groups
    assert {rule for rule in RULES if "." in rule} <= lock.keys()


def test_an_equal_set_up_has_an_equal_lock(tmp_path, lock):
    assert lock_of(tmp_path) == lock


@pytest.mark.parametrize(
    ("change", "refused", "degraded"),
    [
        ({"learning_rate": 1e-4}, ["training.learning_rate"], []),
        ({"scheduler": "cosine"}, ["training.scheduler"], []),
        ({"optimizer": "adamw_8bit"}, ["training.optimizer"], []),
        ({"max_steps": 5}, ["training.max_steps"], []),
        ({"seed": 1}, ["training.seed"], []),
        ({"more": {"lora": {"r": 8}}}, ["lora.r"], []),
        ({"more": {"lora": {"dropout": 0.5}}}, ["lora.dropout"], []),
        ({"more": {"quantization": "none"}}, ["quantization"], []),
        ({"more": {"base_model": "other"}}, ["base_model.name"], []),
        ({"batch_size": 4}, ["rows_per_step"], ["training.batch_size"]),
        ({"batch_size": 1, "gradient_accumulation": 8}, [], ["training.batch_size"]),
        ({"memory": "balanced"}, [], ["training.memory"]),
        ({"oom_ladder": False}, [], []),
        ({"held_out": "b"}, [], []),
        ({"more": {"name": "again", "checkpoints": {"every_steps": 3}}}, [], []),
        ({"capability": (9, 0), "precision": "fp32", "memory": "speed"}, [], ["device.capability", "device.threads"]),
    ],
)
def test_what_another_set_up_means(tmp_path, change, refused, degraded):
    old = lock_of(tmp_path)
    new = lock_of(tmp_path, **change)
    assert [item for item, _, _ in compare(old, new, Rule.REFUSED)] == refused
    assert [item for item, _, _ in compare(old, new, Rule.DEGRADED)] == degraded
    assert old["spec"] != new["spec"] or "held_out" in change or "capability" in change


def test_items_of_another_version_are_refused(lock):
    assert [change.item for change in compare(lock | {"future.item": 1}, lock, Rule.REFUSED)] == ["future.item"]
    fewer = {item: value for item, value in lock.items() if item != "data"}
    assert compare(fewer, lock, Rule.REFUSED) == [("data", None, lock["data"])]
    assert rule_of("packages.torch") is Rule.DEGRADED


def test_the_base_hash_sees_weights_configuration_and_tokenizer_and_no_other_file(tmp_path):
    folder = make_inputs(tmp_path).models_dir / "tiny"
    first = hash_base(folder)
    (folder / "README.md").write_text("words")
    assert hash_base(folder) == first
    seen = {first}
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    seen.add(hash_base(folder))
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text((folder / name).read_text() + " ")
        seen.add(hash_base(folder))
    assert len(seen) == 4


def test_the_template_is_found_where_transformers_finds_it(tmp_path):
    assert hash_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "old"}')
    old = hash_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("new")
    assert None not in (old, hash_template(tmp_path)) and old != hash_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("old")
    assert hash_template(tmp_path) == old


def test_a_checkpoint_has_the_lock_of_its_run(tmp_path):
    run_here(make_spec({"checkpoints": {"every_steps": 1}}, max_steps=1), make_inputs(tmp_path), tmp_path / "1")
    manifest = json.loads((tmp_path / "1" / "out" / "checkpoints" / "step-000001" / "manifest.json").read_text())
    assert manifest["lock"]["base_model.sha256"] == hash_base(tmp_path / "models" / "tiny")
    assert manifest["lock"]["packages.torch"] == torch.__version__
    assert manifest["lock"]["training.precision"] == "fp32"


def test_the_operations_page_has_the_rules():
    rows = re.findall(r"^\| `([a-z_.]+)` \|.*\| (refused|degraded|ignored) \|$", OPERATIONS.read_text(), re.M)
    assert dict(rows) == {item: rule.value for item, rule in RULES.items()}
