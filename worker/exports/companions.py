"""The files beside the weights of a merged model: configuration, tokenizer, licence, model card."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16"}

TOKENIZER = ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken"]
CHAT_TEMPLATES = ["chat_template*", "additional_chat_templates/*"]
SETTINGS = ["*processor_config.json", "generation_config.json"]
LICENCES = ["LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*"]
KEPT = [*TOKENIZER, *CHAT_TEMPLATES, *SETTINGS, *LICENCES]
"""What belongs to the base and holds for the merged model. No code: nothing here may bring a .py file along."""

CARD_FIELDS = ("license", "license_name", "license_link", "language", "pipeline_tag")


def size_of(base: Path) -> int:
    """In bytes, of what is copied beside the weights."""
    return sum(path.stat().st_size for pattern in KEPT for path in base.glob(pattern))


def copy(base: Path, into: Path, *, dtype: str, tied: bool | None) -> None:
    """Copies what is kept as it is, and config.json with what the merge changed in it.

    `dtype` is F16 or BF16; `tied`, when known, is whether output and input embeddings are the same weights.
    """
    copy_files(base, into, KEPT)
    config = json.loads((base / "config.json").read_text())
    config.pop("quantization_config", None)
    for part in (config, config.get("text_config", {})):
        part.update({key: DTYPE_NAMES[dtype] for key in ("dtype", "torch_dtype") if key in part})
    if not config.keys() & {"dtype", "torch_dtype"}:
        config["dtype"] = DTYPE_NAMES[dtype]
    if tied is not None:
        config["tie_word_embeddings"] = tied
    (into / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def copy_files(base: Path, into: Path, patterns: list[str]) -> None:
    for pattern in patterns:
        for source in base.glob(pattern):
            if source.suffix != ".py":
                target = into / source.relative_to(base)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, target)


def write_card(base: Path, into: Path, *, title: str, base_model: str) -> None:
    """Writes README.md. llama.cpp's converter reads the licence and the base model from its front matter.

    The licence is the base's, as the base's own card states it. A base that is no repository of the Hub is named as its card
    names its own base.
    """
    known = front_matter(base / "README.md")
    card: dict[str, Any] = {field: known[field] for field in CARD_FIELDS if field in known}
    origin = base_model if "/" in base_model else known.get("base_model")
    if origin:
        card["base_model"] = origin
    card["library_name"] = "transformers"
    fields = yaml.safe_dump(card, sort_keys=False, allow_unicode=True)
    (into / "README.md").write_text(f"---\n{fields}---\n\n# {title}\n\n{base_model}, fine-tuned with LoRA and merged.\n")


def known_of(base: Path) -> dict[str, Any]:
    """What the base's own card says that holds for a model made from it, and `base_model`, the repository that it names."""
    known = front_matter(base / "README.md")
    return {field: known[field] for field in (*CARD_FIELDS, "base_model") if isinstance(known.get(field), str)}


def front_matter(card: Path) -> dict[str, Any]:
    """The fields at the head of a model card; none when there is no card or they cannot be read."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        fields = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        fields = None
    return fields if isinstance(fields, dict) else {}
