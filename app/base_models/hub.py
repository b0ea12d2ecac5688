"""A model's config.json on the model hub: read when a job is submitted, so that a wrong name is refused at once."""

from typing import Any

from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from app.errors import Detail

TIMEOUT_SECONDS = 3.0


def read_config(repo: str, revision: str | None) -> dict[str, Any] | Detail | None:
    """The parsed file; what is wrong with the repository; or None when the hub does not answer: the job will find out.

    One request without the retries of `hf_hub_download`, which takes half a minute to learn that there is no network.
    """
    if constants.HF_HUB_OFFLINE:
        return None
    url = hf_hub_url(repo, "config.json", revision=revision)
    try:
        answer = get_session().get(url, headers=build_hf_headers(), timeout=TIMEOUT_SECONDS, follow_redirects=True)
        hf_raise_for_status(answer)
        return answer.json()
    except GatedRepoError:
        message = f"{repo} is gated: accept its terms on its hub page, then start the service with HF_TOKEN of that account."
        return Detail("base_model", message, "model_gated")
    except RevisionNotFoundError:
        return Detail("revision", f"{repo} has no branch, tag or commit {revision!r}.", "model_not_found")
    except RepositoryNotFoundError:
        message = f"The hub has no model {repo!r} that this server may see. A private one needs HF_TOKEN in its environment."
        return Detail("base_model", message, "model_not_found")
    except (EntryNotFoundError, ValueError):
        return Detail(
            "base_model", f"{repo} has no readable config.json, so it is no model for transformers.", "model_unsupported"
        )
    except Exception:  # whatever else a network does
        return None
