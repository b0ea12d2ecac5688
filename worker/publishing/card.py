"""The model card: what a repository is, what it was made from and how, how good it is, how to run it.

`render` is pure, and the same record gives the same text: otherwise every push would find something new to commit.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from app.jobs.spec import JobSpec, Publication
from worker.publishing import RepositoryFile
from worker.stages import StoredFile

METHODS = {"sft": "supervised fine-tuning", "cpt": "continued pre-training", "dpo": "direct preference optimisation"}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
UNKNOWN = "–"


@dataclass(frozen=True)
class Record:
    """What is known of a job when it is published."""

    title: str
    spec: JobSpec
    entry: Publication
    files: list[RepositoryFile]
    """Those of the repository, but the card."""
    artifacts: list[StoredFile]
    base: dict[str, Any] = field(default_factory=dict)
    """Of the base model: `name`, `revision`, and `card`, the fields of its own card that hold for what is made from it."""
    counts: dict[str, Any] = field(default_factory=dict)
    """The contract's `data`, and `validation_rows`."""
    trained: dict[str, Any] = field(default_factory=dict)
    """What the stage `train` returned."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """The job's."""

    @property
    def origin(self) -> str | None:
        """The base model's repository at the hub, if it has one."""
        named = [self.spec.base_model, self.base.get("card", {}).get("base_model")]
        return next((name for name in named if isinstance(name, str) and HUB_NAME.fullmatch(name)), None)

    def paths_of(self, kind: str) -> list[str]:
        """The repository's files that are artifacts of a kind."""
        made = {artifact.sha256 for artifact in self.artifacts if artifact.kind == kind}
        return [file.path for file in self.files if file.sha256 in made]


def render(record: Record) -> str:
    fields = yaml.safe_dump(front_matter(record), sort_keys=False, allow_unicode=True)
    sections = [
        f"# {escape(record.title)}",
        introduce(record),
        *(section for section in (measured(record), quantised(record)) if section),
        trained_on(record),
        settings(record),
        usage(record),
        licence(record),
    ]
    return f"---\n{fields}---\n\n" + "\n\n".join(sections) + "\n"


def front_matter(record: Record) -> dict[str, Any]:
    kinds, hub = record.entry.artifacts, record.spec.dataset.hub
    own = record.base.get("card", {})
    only_adapter = {*kinds} <= {"adapter", "lora_gguf"}
    fields: dict[str, Any] = {"base_model": record.origin or record.spec.base_model}
    if record.origin:
        fields["base_model_relation"] = "adapter" if only_adapter else "finetune"
    loaded_by = {"merged": "transformers", "gguf": "gguf", "adapter": "peft", "lora_gguf": "gguf"}
    fields["library_name"] = next(library for kind, library in loaded_by.items() if kind in kinds)
    fields |= {name: own[name] for name in ("license", "license_name", "license_link") if name in own}
    fields["pipeline_tag"] = own.get("pipeline_tag", "text-generation")
    fields["tags"] = ["tunesmith", record.spec.method, "lora", *(["gguf"] if {"gguf", "lora_gguf"} & {*kinds} else [])]
    return fields | ({"datasets": [hub.repo]} if hub and "/" in hub.repo else {})


def introduce(record: Record) -> str:
    base = f"[{record.origin}](https://huggingface.co/{record.origin})" if record.origin else f"`{record.spec.base_model}`"
    holds = {
        "adapter": "the LoRA adapter",
        "merged": "the merged model",
        "gguf": "GGUF files for llama.cpp and Ollama",
        "lora_gguf": "the LoRA adapter as a GGUF file for llama.cpp",
    }
    what = ", ".join(words for kind, words in holds.items() if kind in record.entry.artifacts)
    revision = record.base.get("revision")
    at = f" at revision `{revision}`" if revision else ""
    return f"{base}{at}, changed by {METHODS[record.spec.method]} with LoRA. Here {'are' if ',' in what else 'is'} {what}."


def measured(record: Record) -> str | None:
    rows = [
        ("Loss", "eval_loss"),
        ("Accuracy of the next token", "eval_accuracy"),
        ("Probability of the stop token where it is due", "eval_stop_probability"),
        ("Reward margin", "eval_reward_margin"),
        ("Reward accuracy", "eval_reward_accuracy"),
    ]
    metrics = record.metrics
    found = [
        (name, number(metrics.get(f"{key}_base")), number(metrics[key])) for name, key in rows if metrics.get(key) is not None
    ]
    if not found:
        return None
    held_out = record.counts.get("validation_rows")
    return f"## Results\n\nOn {number(held_out)} held-out rows:\n\n" + table(("", "Base", "Fine-tuned"), found)


def quantised(record: Record) -> str | None:
    """Each GGUF with how far its answers are from those of the merged weights, where that was measured."""
    here = {file.sha256: file.path for file in record.files}
    rows = []
    for artifact in record.artifacts:
        if artifact.kind == "gguf" and artifact.sha256 in here:
            found = artifact.verification or {}
            figures = (number(found.get("kl")), number(found.get("top1")), number(found.get("perplexity")))
            rows.append((f"`{here[artifact.sha256]}`", f"{artifact.bytes / 2**30:.2f} GB", *figures))
    if not rows:
        return None
    heads = ("File", "Size", "KL divergence", "Top-1 agreement", "Perplexity")
    return "## Quantisations\n\nCompared with the merged 16-bit weights:\n\n" + table(heads, rows)


def trained_on(record: Record) -> str:
    hub, counts = record.spec.dataset.hub, record.counts
    name = (
        f"[{hub.repo}](https://huggingface.co/datasets/{hub.repo}), split {escape(hub.split)}"
        if hub
        else "A data set of its own"
    )
    revision = f" at `{hub.revision}`" if hub and hub.revision else ""
    rows = f"{number(counts.get('rows'))} rows, {number(counts.get('tokens'))} tokens"
    learned = f"of which {number(counts.get('trained_tokens'))} are learned"
    return f"## Data\n\n{name}{revision}: {rows}, {learned}. Format: {record.spec.dataset.format}."


def settings(record: Record) -> str:
    spec, trained = record.spec, record.trained
    training, lora = spec.training, spec.lora
    targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    rows = [
        ("LoRA", f"r {number(lora.r)}, alpha {number(lora.alpha)}, dropout {number(lora.dropout)}, {lora.variant}"),
        ("Target modules", escape(targets)),
        ("Base weights held as", spec.quantization),
        ("Optimizer steps", number(trained.get("steps"))),
        ("Rows a step", number(training.batch_size * training.gradient_accumulation)),
        ("Longest row", f"{number(training.max_seq_length)} tokens{', packed' * training.packing}"),
        (
            "Learning rate",
            f"{number(training.learning_rate)}, {training.scheduler}, {number(training.warmup_steps)} warm-up steps",
        ),
        ("Optimizer", f"{training.optimizer}, weight decay {number(training.weight_decay)}"),
        ("Precision", str(trained.get("precision") or training.precision)),
        ("Seed", str(training.seed)),
        ("Training loss", number(record.metrics.get("train_loss"))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in (trained.get("versions") or {}).items()) or UNKNOWN),
    ]
    return "## Settings\n\n" + table(("", ""), rows)


def usage(record: Record) -> str:
    kinds, repo = record.entry.artifacts, record.entry.repo
    parts = ["## How to run it"]
    if "merged" in kinds:
        parts.append("With transformers:\n\n" + python(load_merged(repo)))
    if "adapter" in kinds:
        folder = ', subfolder="adapter"' if "merged" in kinds else ""
        parts.append("With peft, the adapter on the base model:\n\n" + python(load_adapter(record, folder)))
    if names := record.paths_of("gguf"):
        chosen = names[0].removesuffix(".gguf").rpartition("-")[2].upper()
        parts.append("With llama.cpp:\n\n" + shell([f"llama-cli -hf {repo}:{chosen}"]))
        parts.append("With Ollama:\n\n" + shell([f"ollama run hf.co/{repo}:{chosen}"]))
    if adapters := record.paths_of("lora_gguf"):
        parts.append("With llama.cpp, the adapter on a GGUF file of the base model:\n\n" + shell(load_lora(repo, adapters[0])))
    if record.entry.private:
        parts.append(
            "The repository was made as a private one: each of these then needs an access token of an account that may read it."
        )
    return "\n\n".join(parts)


def load_merged(repo: str) -> list[str]:
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
        f'model = AutoModelForCausalLM.from_pretrained("{repo}", dtype="auto")',
    ]


def load_adapter(record: Record, folder: str) -> list[str]:
    base = record.origin or "path/to/" + record.spec.base_model
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{record.entry.repo}")',
        f'base = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")',
        f'model = PeftModel.from_pretrained(base, "{record.entry.repo}"{folder})',
    ]


def load_lora(repo: str, path: str) -> list[str]:
    return [f"hf download {repo} {path} --local-dir .", f"llama-cli -m base-model.gguf --lora {path}"]


def licence(record: Record) -> str:
    name = record.base.get("card", {}).get("license_name") or record.base.get("card", {}).get("license")
    if not name:
        return "## Licence\n\nThe base model states none that could be read; its terms hold for this model, too."
    return f"## Licence\n\nThat of the base model: {escape(str(name))}."


def python(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def shell(lines: list[str]) -> str:
    return "\n".join(["```sh", *lines, "```"])


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ("---",) * len(heads), *rows))


def number(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~&])", r"\\\1", " ".join(text.split()))
