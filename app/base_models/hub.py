"""A model's config.json on the model hub: read when a job is submitted, so that a wrong name is refused at once."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from app.errors import Detail

TIMEOUT_SECONDS = 3.0


def read_config(repo: str, revision: str | None, cache_dir: Path) -> dict[str, Any] | Detail | None:
    """The parsed file; what is wrong with the repository; or None when the hub does not answer: the job will find out."""
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        path = hf_hub_download(
            repo, "config.json", revision=revision, cache_dir=cache_dir / "configs", etag_timeout=TIMEOUT_SECONDS
        )
        return json.loads(Path(path).read_bytes())
    except GatedRepoError:
        return Detail(
            "base_model",
            f"{repo} is gated: accept its terms on its hub page, then start the service with HF_TOKEN of that account.",
            "model_gated",
        )
    except RevisionNotFoundError:
        return Detail("revision", f"{repo} has no branch, tag or commit {revision!r}.", "model_not_found")
    except (RepositoryNotFoundError, HFValidationError):
        return Detail(
            "base_model",
            f"The hub has no model {repo!r} that this server may see. A private one needs HF_TOKEN in its environment.",
            "model_not_found",
        )
    except LocalEntryNotFoundError:
        return None
    except (EntryNotFoundError, ValueError):
        return Detail(
            "base_model", f"{repo} has no readable config.json, so it is no model for transformers.", "model_unsupported"
        )
    except Exception:  # whatever else the network does
        return None
