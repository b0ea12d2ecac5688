"""Loads a base model's tokenizer."""

import json
from pathlib import Path
from typing import Any

from app.jobs.states import FailureCode
from worker.stages import StageFailure

PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(folder: Path) -> Any:
    """The model's fast tokenizer. StageFailure model_unsupported if it has none."""
    settings, config = read_json(folder / "tokenizer_config.json"), read_json(folder / "config.json")
    plain = settings.get("tokenizer_class") in PLAIN_CLASSES and config.get("model_type") == "llama"
    if plain and "auto_map" not in settings:
        # What AutoTokenizer ends up with, but without importing torch on the way.
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.is_fast:
        message = "The model has no tokenizer.json, and none can be made from its files."
        hint = "Use a model with a tokenizer.json."
        raise StageFailure(FailureCode.MODEL_UNSUPPORTED, message, hint=hint, param="base_model")
    return tokenizer


def eos_token_ids(folder: Path, tokenizer: Any) -> set[int]:
    """The tokens at which the model stops by itself: the tokenizer's and those of generation_config.json."""
    declared = read_json(folder / "generation_config.json").get("eos_token_id")
    ids = declared if isinstance(declared, list) else [declared]
    return {index for index in [*ids, tokenizer.eos_token_id] if index is not None}


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
