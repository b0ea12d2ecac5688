"""The base models that a job can name, and whether a given name is one of them."""

import json
import re
from pathlib import Path
from typing import Any

from app import hub
from app.base_models.quantised import find_original, is_quantised
from app.errors import Detail
from app.jobs.spec import BUILT_IN_MODEL
from app.settings import Settings
from app.suggestions import suggest

FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def list_folders(models_dir: Path | None) -> list[Path]:
    """The operator's model folders, by name."""
    if models_dir is None or not models_dir.is_dir():
        return []
    return sorted(
        path for path in models_dir.iterdir() if FOLDER_NAME.fullmatch(path.name) and (path / "config.json").is_file()
    )


def check(base_model: str, revision: str | None, settings: Settings, token: str | None = None) -> Detail | None:
    """What is wrong with this base model, or None. May ask the model hub, with `token`, for at most a few seconds."""
    folders = {path.name: path for path in list_folders(settings.models_dir)}
    if base_model == BUILT_IN_MODEL or base_model in folders:
        if revision is not None:
            return Detail("revision", f"{base_model} is not from the hub and has no revisions; leave revision null.")
        return None if base_model == BUILT_IN_MODEL else check_folder(folders[base_model])
    if HUB_ID.fullmatch(base_model):
        return check_hub(base_model, revision, token)
    return not_found(base_model, [BUILT_IN_MODEL, *folders])


def not_found(base_model: str, names: list[str]) -> Detail:
    hint = "A model of the hub is named OWNER/NAME, and paths are not taken."
    message = f"There is no base model {base_model!r}: {suggest(base_model, names)} {hint}"
    return Detail("base_model", message, "model_not_found")


def check_folder(folder: Path) -> Detail | None:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except ValueError:
        return Detail("base_model", f"The config.json of {folder.name} is not JSON.", "model_unsupported")
    if is_quantised(folder.name) or holds_quantised(config):
        return already_quantised(folder.name)
    if not any(folder.glob("*.safetensors")):
        return Detail(
            "base_model", f"The folder {folder.name} has no safetensors file; no other format is read.", "model_unsupported"
        )
    return None


def check_hub(repo: str, revision: str | None, token: str | None) -> Detail | None:
    if is_quantised(repo):
        return already_quantised(repo)
    config = hub.read_config(repo, revision, token)
    if isinstance(config, Detail):
        return config
    return already_quantised(repo) if config is not None and holds_quantised(config) else None


def holds_quantised(config: Any) -> bool:
    return isinstance(config, dict) and "quantization_config" in config


def already_quantised(name: str) -> Detail:
    original = find_original(name)
    advice = f"Use its 16-bit original, {original}." if original else "Use its 16-bit original."
    return Detail(
        "base_model",
        f"{name} is already quantised, and an adapter cannot be merged into it without loss. {advice} "
        "The field quantization says how the weights are held in training.",
        "model_unsupported",
        {"base_model": original} if original else None,
    )
