"""The model hub, asked when a job is submitted, so that a wrong name or token is refused at once.

One small file of the repository is read, with the job's token. One request without the retries of the hub's client, which takes
half a minute to learn that there is no network: where the hub does not answer, the job will find out.
"""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Subject:
    """What is asked for: a `model` or a `dataset`, the field that names it, and the codes for what can be wrong with it."""

    kind: str
    repo: str
    revision: str | None
    param: str
    revision_param: str
    not_found: str
    gated: str


def read_config(repo: str, revision: str | None, token: str | None) -> dict[str, Any] | Detail | None:
    """A model's config.json, parsed; what is wrong with the repository; or None when the hub does not answer.

    `token` None is the service's own, from its environment, if it has one.
    """
    params = "base_model", "revision"
    subject = Subject("model", repo, revision, *params, not_found="model_not_found", gated="model_gated")
    try:
        answer = read_file(subject, "config.json", token)
        return answer if answer is None or isinstance(answer, Detail) else answer.json()
    except (EntryNotFoundError, ValueError):
        message = f"{repo} has no readable config.json, so it is no whole model for transformers: an adapter, perhaps, or GGUF."
        return Detail("base_model", message, "model_unsupported")


def check_data_set(repo: str, revision: str | None, token: str | None) -> Detail | None:
    """What is wrong with a data set's repository, or None."""
    params = "dataset.hub.repo", "dataset.hub.revision"
    subject = Subject("dataset", repo, revision, *params, not_found="dataset_not_found", gated="hub_unauthorized")
    try:
        answer = read_file(subject, "README.md", token)
    except EntryNotFoundError:
        return None
    return answer if isinstance(answer, Detail) else None


def read_file(subject: Subject, path: str, token: str | None) -> Any | Detail | None:
    """The hub's answer. EntryNotFoundError when the repository can be read and has no such file."""
    if constants.HF_HUB_OFFLINE:
        return None
    url = hf_hub_url(subject.repo, path, repo_type=subject.kind, revision=subject.revision)
    try:
        answer = get_session().get(url, headers=build_hf_headers(token=token), timeout=TIMEOUT_SECONDS, follow_redirects=True)
        hf_raise_for_status(answer)
        return answer
    except GatedRepoError:
        account = "the account of hub_token" if token else "an account whose token the job gives"
        message = f"{subject.repo} is gated: accept its terms on its hub page with {account}. {NEEDS_TOKEN}"
        return Detail(subject.param, message, subject.gated)
    except RevisionNotFoundError:
        message = f"{subject.repo} has no branch, tag or commit {subject.revision!r}."
        return Detail(subject.revision_param, message, subject.not_found)
    except RepositoryNotFoundError:
        seen = " that may be seen with this token" if token else ""
        message = (
            f"The hub has no {subject.kind} {subject.repo!r}{seen}. Check the name. A private one needs a token: {NEEDS_TOKEN}"
        )
        return Detail(subject.param, message, subject.not_found)
    except EntryNotFoundError:
        raise
    except HfHubHTTPError as problem:
        return refused_token(subject, token) if problem.response.status_code in (401, 403) else None
    except Exception:  # whatever else a network does
        return None


def refused_token(subject: Subject, token: str | None) -> Detail:
    param, whose = ("hub_token", "of hub_token") if token else (subject.param, "in the service's own HF_TOKEN")
    message = f"The hub refuses the token {whose} for {subject.repo}. It must be valid and allow reading. {NEEDS_TOKEN}"
    return Detail(param, message, "hub_unauthorized")
