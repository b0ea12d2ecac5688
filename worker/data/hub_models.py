"""A model of the hub as one whole folder: looked up, allowed, downloaded, compared with what the hub says of each file."""

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app.jobs.states import FailureCode
from worker.data import hub
from worker.space import CACHE_DISK, require_space
from worker.stages import StageFailure

MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "README.md", "LICENSE*"]
OTHER_WEIGHTS = ["*/*", "consolidated*.safetensors", "adapter_model*.safetensors"]
"""Folders (ONNX, Meta's original files), a second copy of the weights under another layout, and adapters."""

PROGRESS_SECONDS = 2.0
CHUNK_BYTES = 1 << 20


def resolve(repo: str, revision: str | None, token: str | None, report: Any, *, pauses: tuple[float, ...] | None = None) -> str:
    """The commit that `revision` (None: the default branch) names now. StageFailure as `hub.hub_errors` says."""
    from huggingface_hub import HfApi

    def ask() -> str:
        return str(HfApi(token=token).model_info(repo, revision=revision).sha)

    return hub.patiently(hub.model(repo), ask, report, pauses)


def require_access(repo: str, commit: str, token: str | None, report: Any) -> None:
    """StageFailure when the token may not read the repository: what is in the cache may be another account's."""
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    def ask() -> None:
        address = hf_hub_url(repo, "config.json", revision=commit)
        headers, timeout = build_hf_headers(token=token), constants.HF_HUB_ETAG_TIMEOUT
        answer = get_session().get(address, headers=headers, timeout=timeout, follow_redirects=True)
        hf_raise_for_status(answer)

    hub.patiently(hub.model(repo), ask, report, pauses=())


def download(
    repo: str, commit: str, folder: Path, *, token: str | None, report: Any, check: Callable[[dict, Any], None]
) -> None:
    """Fills `folder`, which may hold the files of a broken download, with the model's safetensors, JSON and tokenizer files.

    `check(config, card)` sees config.json and the model card's data before any weights are fetched, and raises to refuse.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    subject = hub.model(repo)

    def ask() -> Any:
        return HfApi(token=token).model_info(repo, revision=commit, files_metadata=True)

    def fetch(name: str) -> dict[str, Any]:
        def ask() -> Path:
            return Path(hf_hub_download(repo, name, revision=commit, local_dir=folder, token=token))

        return json.loads(hub.patiently(subject, ask, report).read_bytes())

    info = hub.patiently(subject, ask, report)
    files = {file.rfilename: file for file in info.siblings or []}
    wanted = list(filter_repo_objects(files, allow_patterns=MODEL_FILES, ignore_patterns=OTHER_WEIGHTS))
    has_weights = any(name.endswith(".safetensors") for name in wanted)
    if "adapter_config.json" in files and not has_weights:
        raise only_adapter(repo, fetch("adapter_config.json"))
    if "config.json" not in files or not has_weights:
        raise no_safetensors(repo)
    check(fetch("config.json"), info.card_data)
    total = sum(files[name].size or 0 for name in wanted)
    require_space(folder, max(0, total - size_of(folder)), f"Downloading {repo}", disk=CACHE_DISK)

    def ask_for_files() -> None:
        snapshot_download(repo, revision=commit, local_dir=folder, allow_patterns=wanted, token=token)
        require_equal(folder, [files[name] for name in wanted], subject)

    with progress_of(folder, repo, total, report):
        hub.patiently(subject, ask_for_files, report)
    shutil.rmtree(folder / ".cache")
    require_shards(folder, repo)


def require_equal(folder: Path, files: list[Any], subject: hub.Subject) -> None:
    """Removes what is not as the hub says, so that the next try fetches it again, and raises hub_unavailable."""
    damaged = [folder / file.rfilename for file in files if not is_equal(folder / file.rfilename, file)]
    for path in damaged:
        path.unlink(missing_ok=True)
    if damaged:
        raise hub.unavailable(subject, f"{damaged[0].name} arrived damaged")


def is_equal(path: Path, file: Any) -> bool:
    """By SHA-256 where the hub tells it, which it does for large files, else by git's hash of the content."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    digest = hashlib.sha256() if file.lfs else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == (file.lfs.sha256 if file.lfs else file.blob_id)


def require_shards(folder: Path, name: str) -> None:
    """StageFailure when the index of the weights names a file that is not there."""
    index = folder / "model.safetensors.index.json"
    shards = set(json.loads(index.read_bytes())["weight_map"].values()) if index.exists() else set()
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        message = f"{name} lacks {missing[0]}, which its model.safetensors.index.json names."
        hint = "Use a repository or folder that is complete."
        raise StageFailure(FailureCode.MODEL_UNSUPPORTED, message, hint=hint, param="base_model")


def no_safetensors(name: str) -> StageFailure:
    return StageFailure(
        FailureCode.MODEL_UNSUPPORTED,
        f"{name} has no config.json with safetensors weights.",
        hint="Use a repository with safetensors in the Hugging Face layout; pickled weights and GGUF files are never loaded.",
        param="base_model",
    )


def only_adapter(name: str, config: dict[str, Any]) -> StageFailure:
    named = str(config.get("base_model_name_or_path"))
    base = named if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", named) else None
    return StageFailure(
        FailureCode.MODEL_UNSUPPORTED,
        f"{name} is an adapter, not a whole model." + (f" It was made for {base}." if base else ""),
        hint="Give the model that the adapter belongs to; a job trains an adapter of its own.",
        param="base_model",
        patch={"base_model": base} if base else None,
    )


@contextmanager
def progress_of(folder: Path, repo: str, total: int, report: Any) -> Iterator[None]:
    """Reports every two seconds how much of `total` bytes has arrived in the folder."""
    done = threading.Event()

    def watch() -> None:
        while True:
            here = min(total, size_of(folder))
            report("progress", message=f"Downloading {repo}: {here / 2**30:.2f} of {total / 2**30:.2f} GB")
            if done.wait(PROGRESS_SECONDS):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def size_of(folder: Path) -> int:
    """Of the files in it, in bytes. A client at work renames and removes some meanwhile: what is gone counts nothing."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += Path(place, name).stat().st_size
    return size
