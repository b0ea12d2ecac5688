"""Whether a token may write to a repository, asked before anything is trained. Nothing is made or changed at the hub."""

from typing import TYPE_CHECKING, Any

from app.jobs.states import FailureCode
from worker.publishing.failures import Target, patiently
from worker.publishing.push import read_head, require_private
from worker.stages import Report, StageFailure

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WRITERS = ("admin", "write", "contributor")
"""The roles in an organisation that may make repositories there."""
STORE = "store it under the same name with `tunesmith secrets set`, then retry the job."


def require_access(target: Target, token: str, report: Report, *, private: bool) -> None:
    """StageFailure hub_unauthorized, hub_unavailable, or invalid_spec for a public repository that was to be private."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(token=token)
    account = patiently(target, api.whoami, report)
    require_role(target, account)
    require_namespace(target, account)

    def look() -> None:
        try:
            head = read_head(api, target.repo)
        except RepositoryNotFoundError:
            return
        require_private(target, head, private=private)
        ask_for_leave(api, target.repo)

    patiently(target, look, report)


def require_role(target: Target, account: dict[str, Any]) -> None:
    """By what the hub tells of the token: `read`, `write`, or `fineGrained` with what it is for."""
    token = account.get("auth", {}).get("accessToken", {})
    scopes = token.get("fineGrained", {}).get("scoped")
    if token.get("role") == "read":
        raise unauthorised(target, "token", "The token may only read.", f"Make one that may write, {STORE}")
    if token.get("role") == "fineGrained" and scopes is not None:
        namespace = target.repo.partition("/")[0]
        meant = [scope for scope in scopes if names(scope) & {namespace.lower(), target.repo.lower()}]
        if not any("repo.write" in scope.get("permissions", []) for scope in meant):
            message = f"The token has no permission to write to repositories of {namespace}."
            raise unauthorised(target, "token", message, f"Add it, or make another token and {STORE}")


def names(scope: dict[str, Any]) -> set[str]:
    return {str(scope.get("entity", {}).get("name", "")).lower()}


def require_namespace(target: Target, account: dict[str, Any]) -> None:
    """A repository belongs to the token's account, or to an organisation where the account may write."""
    namespace, name = target.repo.split("/")
    own = {account["name"].lower(): "admin"}
    own |= {org["name"].lower(): org.get("roleInOrg") or "write" for org in account.get("orgs", [])}
    if own.get(namespace.lower()) not in WRITERS:
        message = f"The token is of {account['name']}, who may not write to repositories of {namespace}."
        hint = f"Publish to {account['name']}/{name}, or make a token of an account that may, and {STORE}"
        raise unauthorised(target, "repo", message, hint)


def ask_for_leave(api: "HfApi", repo: str) -> None:
    """Asks how a small file would be sent, which only those who may write are told. Nothing is."""
    from huggingface_hub import CommitOperationAdd

    api.preupload_lfs_files(repo, [CommitOperationAdd("README.md", b"\n")])


def unauthorised(target: Target, field: str, message: str, hint: str) -> StageFailure:
    message = f"{target.repo} cannot be published to. {message}"
    return StageFailure(FailureCode.HUB_UNAUTHORIZED, message, hint=hint, param=target.param(field))
