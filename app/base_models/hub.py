"""A model's config.json on the model hub: read when a job is submitted, so that a wrong name or token is refused at once."""

from typing import Any

from huggingface_hub import constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from app.errors import Detail

TIMEOUT_SECONDS = 3.0
NEEDS_TOKEN = 'hub_token names a stored token, as in "secret:hf"; `tunesmith secrets set hf` stores one.'  # noqa: S105


def read_config(repo: str, revision: str | None, token: str | None) -> dict[str, Any] | Detail | None:
    """The parsed file; what is wrong with the repository; or None when the hub does not answer: the job will find out.

    `token` None is the service's own, from its environment, if it has one. One request without the retries of
    `hf_hub_download`, which takes half a minute to learn that there is no network.
    """
    if constants.HF_HUB_OFFLINE:
        return None
    url = hf_hub_url(repo, "config.json", revision=revision)
    try:
        answer = get_session().get(url, headers=build_hf_headers(token=token), timeout=TIMEOUT_SECONDS, follow_redirects=True)
        hf_raise_for_status(answer)
        return answer.json()
    except GatedRepoError:
        return gated(repo, token)
    except RevisionNotFoundError:
        return Detail("revision", f"{repo} has no branch, tag or commit {revision!r}.", "model_not_found")
    except RepositoryNotFoundError:
        message = (
            f"The hub has no model {repo!r} that may be seen with this token. " if token else f"The hub has no model {repo!r}. "
        )
        return Detail("base_model", f"{message}Check the name. A private one needs a token: {NEEDS_TOKEN}", "model_not_found")
    except (EntryNotFoundError, ValueError):
        message = f"{repo} has no readable config.json, so it is no whole model for transformers: an adapter, perhaps, or GGUF."
        return Detail("base_model", message, "model_unsupported")
    except HfHubHTTPError as problem:
        return refused_token(repo, token) if problem.response.status_code in (401, 403) else None
    except Exception:  # whatever else a network does
        return None


def gated(repo: str, token: str | None) -> Detail:
    account = "the account of hub_token" if token else "an account whose token the job gives"
    message = f"{repo} is gated: accept its terms on its hub page with {account}. {NEEDS_TOKEN}"
    return Detail("base_model", message, "model_gated")


def refused_token(repo: str, token: str | None) -> Detail:
    param, whose = ("hub_token", "of hub_token") if token else ("base_model", "in the service's own HF_TOKEN")
    message = f"The hub refuses the token {whose} for {repo}. It must be valid and allow reading. {NEEDS_TOKEN}"
    return Detail(param, message, "hub_unauthorized")
