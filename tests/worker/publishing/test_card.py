from pathlib import Path

import pytest
import yaml

from app.jobs.spec import JobSpec
from worker.publishing.card import Record, render
from worker.publishing.layout import arrange
from worker.stages import StoredFile

SPEC = {
    "base_model": "org/base",
    "dataset": {"hub": {"repo": "org/rows", "revision": "abc"}},
    "name": "My *tuned* model",
    "exports": [{"kind": "adapter"}, {"kind": "merged"}, {"kind": "gguf"}, {"kind": "lora_gguf"}],
}
NAMES = [
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "gguf/My-model-q4_k_m.gguf",
    "gguf/My-model-q8_0.gguf",
    "lora_gguf/My-model-lora-f16.gguf",
    "merged/README.md",
    "merged/config.json",
    "merged/model.safetensors",
    "tokenizer/tokenizer.json",
]
FIGURES = {"kl": 0.0123456, "top1": 0.98, "perplexity": 7.25}


def stored(name, **more):
    return StoredFile(name, name.partition("/")[0], Path("/blobs") / name, 2**30, name, **more)


def make(kinds, *, spec=None, figures=None, **more):
    made = JobSpec.model_validate(
        SPEC | (spec or {}) | {"publish": [{"repo": "me/x", "artifacts": kinds, "token": "secret:hf"}]}
    )
    artifacts = [stored(name, verification=figures if name.endswith(".gguf") else None) for name in NAMES]
    files = arrange(artifacts, kinds)
    base = {"name": "org/base", "revision": "f00", "card": {"license": "apache-2.0"}}
    return Record("My *tuned* model", made, made.publish[0], files, artifacts, **{"base": base} | more)


def fields_of(card):
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize(
    ("kinds", "places"),
    [
        (["adapter"], ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]),
        (["merged"], ["config.json", "model.safetensors"]),
        (["gguf"], ["My-model-q4_k_m.gguf", "My-model-q8_0.gguf"]),
        (["lora_gguf"], ["My-model-lora-f16.gguf"]),
        (
            ["adapter", "merged"],
            ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "config.json", "model.safetensors"],
        ),
    ],
)
def test_files_lie_where_programs_look_for_them(kinds, places):
    assert [file.path for file in make(kinds).files] == places


def test_an_adapters_card_tells_programs_and_readers_what_it_is():
    counts = {"rows": 1200, "tokens": 34567, "trained_tokens": 12000, "validation_rows": 60}
    metrics = {"train_loss": 1.5, "eval_loss": 1.25, "eval_loss_base": 2.5, "eval_accuracy": 0.5}
    trained = {"steps": 40, "precision": "bf16", "versions": {"torch": "2.11"}}
    card = render(make(["adapter"], counts=counts, metrics=metrics, trained=trained))
    assert fields_of(card) == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["tunesmith", "sft", "lora"],
        "datasets": ["org/rows"],
    }
    assert "# My \\*tuned\\* model" in card
    assert "On 60 held-out rows:" in card
    assert "| Loss | 2.5 | 1.25 |" in card
    assert "| Accuracy of the next token | – | 0.5 |" in card
    assert "1,200 rows, 34,567 tokens, of which 12,000 are learned" in card
    assert "at `abc`" in card and "torch 2.11" in card
    assert 'PeftModel.from_pretrained(base, "me/x")' in card
    assert "ollama" not in card and "GGUF" not in card


def test_a_card_of_ggufs_has_their_figures_and_how_to_run_them():
    card = render(make(["gguf"], figures=FIGURES))
    assert fields_of(card)["library_name"] == "gguf"
    assert "| `My-model-q8_0.gguf` | 1.00 GB | 0.01235 | 0.98 | 7.25 |" in card
    assert "llama-cli -hf me/x:Q4_K_M" in card
    assert "ollama run hf.co/me/x:Q4_K_M" in card
    assert "peft" not in card


def test_a_card_tells_how_llama_cpp_puts_the_adapter_on_the_base():
    card = render(make(["lora_gguf"], figures=FIGURES))
    fields = fields_of(card)
    assert (fields["library_name"], fields["base_model_relation"]) == ("gguf", "adapter") and "gguf" in fields["tags"]
    assert "llama-cli -m base-model.gguf --lora My-model-lora-f16.gguf" in card
    assert "hf download me/x My-model-lora-f16.gguf" in card
    assert "-hf me/x" not in card and "ollama" not in card and "KL" not in card


def test_an_adapters_gguf_beside_other_files_is_not_taken_for_a_model():
    both = fields_of(render(make(["adapter", "lora_gguf"])))
    assert (both["library_name"], both["base_model_relation"]) == ("peft", "adapter")
    card = render(make(["lora_gguf", "gguf"], figures=FIGURES))
    assert fields_of(card)["base_model_relation"] == "finetune"
    assert "| `My-model-lora-f16.gguf`" not in card and "--lora My-model-lora-f16.gguf" in card
    assert "llama-cli -hf me/x:Q4_K_M" in card and ":F16" not in card


def test_an_adapter_beside_the_merged_model_is_loaded_from_its_folder():
    card = render(make(["adapter", "merged"]))
    assert 'subfolder="adapter"' in card
    assert 'AutoModelForCausalLM.from_pretrained("me/x", dtype="auto")' in card


def test_what_is_not_known_is_left_out_or_a_dash():
    base = {"name": "small", "revision": None}
    spec = {"base_model": "small", "dataset": {"file": "file-1"}}
    card = render(make(["gguf"], spec=spec, base=base))
    fields = fields_of(card)
    assert fields["base_model"] == "small" and not fields.keys() & {"base_model_relation", "license", "datasets"}
    assert "| `My-model-q8_0.gguf` | 1.00 GB | – | – | – |" in card
    assert "None" not in card and "file-1" not in card
    assert "## Results" not in card


def test_the_repository_of_a_base_that_came_otherwise_is_named_as_its_own_card_names_it():
    base = {"name": "small", "revision": "1", "card": {"base_model": "org/real", "license_name": "own terms"}}
    card = render(make(["adapter"], spec={"base_model": "small"}, base=base))
    assert fields_of(card)["base_model"] == "org/real"
    assert 'AutoModelForCausalLM.from_pretrained("org/real", dtype="auto")' in card
    assert "own terms" in card


def test_the_same_record_makes_the_same_card():
    assert render(make(["adapter", "merged", "gguf"])) == render(make(["adapter", "merged", "gguf"]))
