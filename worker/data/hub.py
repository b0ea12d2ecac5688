"""The model hub: its errors in our words, and a model's files as one whole folder."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.jobs.states import FailureCode
from worker.stages import StageFailure

MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "README.md", "LICENSE*"]
OTHER_WEIGHTS = ["*/*", "consolidated*.safetensors"]
"""Folders (ONNX, Meta's original files) and a second copy of the weights under another layout."""

ACCESS_HINT = 'store it with `tunesmith secrets set hf`, set hub_token to "secret:hf", then retry.'
PROGRESS_SECONDS = 2.0
SPARE_BYTES = 1 << 30


@contextmanager
def hub_errors(what: str, *, param: str, revision_param: str, not_found: FailureCode) -> Iterator[None]:
    """Turns what the hub's client raises into a StageFailure about `what` ("model x/y"), which the spec names in `param`."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as problem:
        is_model = not_found == FailureCode.MODEL_NOT_FOUND
        raise no_access(what, FailureCode.MODEL_GATED if is_model else FailureCode.HUB_UNAUTHORIZED, param) from problem
    except errors.RevisionNotFoundError as problem:
        raise StageFailure(
            not_found,
            f"The {what} has no such revision.",
            hint="Give a branch, tag or commit that exists, or leave it null.",
            param=revision_param,
        ) from problem
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as problem:
        raise StageFailure(
            not_found,
            f"The {what} does not exist on the hub, or is private and your token does not show it.",
            hint=f"Check the name. A private one needs a token of an account that may read it: {ACCESS_HINT}",
            param=param,
        ) from problem
    except errors.HfHubHTTPError as problem:
        status = problem.response.status_code
        if status in (401, 403):
            raise StageFailure(
                FailureCode.HUB_UNAUTHORIZED,
                f"The hub refused the token for the {what} (status {status}).",
                hint=f"Give a valid token that allows reading: {ACCESS_HINT}",
                param="hub_token",
            ) from problem
        raise unavailable(what, f"it answered with status {status}") from problem
    except (errors.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError) as problem:
        raise unavailable(what, type(problem).__name__) from problem


def no_access(what: str, code: FailureCode, param: str) -> StageFailure:
    hint = f"Accept its terms on its hub page and use a token of that account: {ACCESS_HINT}"
    return StageFailure(code, f"The {what} is gated and your token has no access to it.", hint=hint, param=param)


def unavailable(what: str, reason: str) -> StageFailure:
    hint = (
        "Retry when the hub can be reached. Without a network, use the built-in model or a folder under TUNESMITH_MODELS_DIR."
    )
    return StageFailure(FailureCode.HUB_UNAVAILABLE, f"The hub could not be reached for the {what}: {reason}.", hint=hint)


def model_errors(repo: str) -> Any:
    return hub_errors(f"model {repo}", param="base_model", revision_param="revision", not_found=FailureCode.MODEL_NOT_FOUND)


def resolve_model(repo: str, revision: str | None, token: str | None) -> str:
    """The commit that `revision` (None: the default branch) names now. StageFailure as `hub_errors` says."""
    from huggingface_hub import HfApi

    with model_errors(repo):
        return str(HfApi(token=token).model_info(repo, revision=revision).sha)


def download_model(
    repo: str, commit: str, folder: Path, *, token: str | None, report: Any, check: Callable[[dict, Any], None]
) -> None:
    """Fills `folder`, which may hold the files of a broken download, with the model's safetensors, JSON and tokenizer files.

    `check(config, card)` sees config.json and the model card's data before any weights are fetched, and raises to refuse.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    with model_errors(repo):
        info = HfApi(token=token).model_info(repo, revision=commit, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        wanted = list(filter_repo_objects(sizes, allow_patterns=MODEL_FILES, ignore_patterns=OTHER_WEIGHTS))
        if "config.json" not in sizes or not any(name.endswith(".safetensors") for name in wanted):
            raise no_safetensors(repo)
        config = hf_hub_download(repo, "config.json", revision=commit, local_dir=folder, token=token)
        check(json.loads(Path(config).read_text()), info.card_data)
        total = sum(sizes[name] for name in wanted)
        require_space(folder, total, repo)
        with progress_of(folder, repo, total, report):
            snapshot_download(repo, revision=commit, local_dir=folder, allow_patterns=wanted, token=token)
    shutil.rmtree(folder / ".cache")


def no_safetensors(name: str) -> StageFailure:
    return StageFailure(
        FailureCode.MODEL_UNSUPPORTED,
        f"{name} has no config.json with safetensors weights.",
        hint="Use a repository with safetensors in the Hugging Face layout; pickled weights and GGUF files are never loaded.",
        param="base_model",
    )


def require_space(folder: Path, needed: int, repo: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        message = f"{repo} has {needed / 2**30:.1f} GB, but only {free / 2**30:.1f} GB are free where models are kept."
        raise StageFailure(FailureCode.DISK_FULL, message, hint="Make space on the disk of TUNESMITH_CACHE_DIR, then retry.")


@contextmanager
def progress_of(folder: Path, repo: str, total: int, report: Any) -> Iterator[None]:
    """Reports every two seconds how much of `total` bytes has arrived in the folder."""
    done = threading.Event()

    def watch() -> None:
        while True:
            here = min(total, sum(path.stat().st_size for path in list(folder.rglob("*")) if path.is_file()))
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
