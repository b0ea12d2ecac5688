"""Brings a repository to where it holds the given files, in one commit, or in none when it does already.

The head is read first and nothing is sent that it holds. So a push that was broken anywhere is simply done again: large files
that had arrived are not sent twice, and a commit whose answer was lost is found at the head. A commit names the head that it
was made for; when somebody else was faster, the new head is looked at. Other files of the repository are left alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.jobs.states import FailureCode
from worker.publishing import Pushed, RepositoryFile
from worker.publishing.failures import ParentMoved, Target, patiently, status_of
from worker.stages import Report, StageFailure

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

LARGE_BYTES = 1 << 20
"""From here on a file is sent by itself, so that its arrival is known; smaller ones go with the commit."""
MOST_MOVES = 10
"""How often somebody else may commit in between."""


@dataclass(frozen=True)
class Head:
    commit: str
    private: bool
    files: dict[str, Any]
    """By path: `blob_id`, git's hash of the content, or for a large file `lfs.sha256`."""


def push(target: Target, files: Sequence[RepositoryFile], token: str, report: Report, *, private: bool, message: str) -> Pushed:
    """Makes the repository if there is none. StageFailure hub_unauthorized, hub_unavailable, invalid_spec."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # the log is a file
    api = HfApi(token=token)
    operations: dict[str, CommitOperationAdd] = {}
    url, tried = f"{api.endpoint}/{target.repo}", False
    for _ in range(MOST_MOVES):
        head = patiently(target, lambda: read_or_make(api, target.repo, private=private), report)
        require_private(target, head, private=private)
        missing = [file for file in files if not holds(head, file)]
        if not missing:
            return Pushed(target.repo, head.commit, url, is_new=tried)
        for file in missing:
            operations.setdefault(file.path, describe(file))
        send_large(api, target, missing, operations, report)
        tried = True
        try:
            commit = commit_to(api, target, head, [operations[file.path] for file in missing], message, report)
        except ParentMoved:
            report("progress", message=f"{target.repo} has a new commit. Looking at it again.")
        else:
            return Pushed(target.repo, commit, url, is_new=True)
    raise StageFailure(
        FailureCode.HUB_UNAVAILABLE,
        f"Somebody else committed to {target.repo} {MOST_MOVES} times while its files were being sent.",
        hint="Retry the job when nobody else writes to the repository.",
        param=target.param("repo"),
    )


def read_or_make(api: "HfApi", repo: str, *, private: bool) -> Head:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return read_head(api, repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private, exist_ok=True)
        return read_head(api, repo)


def read_head(api: "HfApi", repo: str) -> Head:
    info = api.model_info(repo, files_metadata=True)
    return Head(info.sha or "", bool(info.private), {file.rfilename: file for file in info.siblings or []})


def require_private(target: Target, head: Head, *, private: bool) -> None:
    """StageFailure invalid_spec rather than to show to everybody what was to be private."""
    if private and not head.private:
        raise StageFailure(
            FailureCode.INVALID_SPEC,
            f"{target.repo} is public, and {target.param('private')} asks for a private repository.",
            hint="Make the repository private at the hub, name another one, or set private to false.",
            param=target.param("private"),
        )


def holds(head: Head, file: RepositoryFile) -> bool:
    there = head.files.get(file.path)
    if there is None or there.size != file.size:
        return False
    if there.lfs:
        return there.lfs.sha256 == file.sha256
    content = file.read()
    return there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def describe(file: RepositoryFile) -> "CommitOperationAdd":
    """The hash is known: the client need not read a large file once more."""
    from huggingface_hub import CommitOperationAdd

    operation = CommitOperationAdd(file.path, file.content)
    operation.upload_info.sha256 = bytes.fromhex(file.sha256)
    return operation


def send_large(
    api: "HfApi",
    target: Target,
    files: Sequence[RepositoryFile],
    operations: "dict[str, CommitOperationAdd]",
    report: Report,
) -> None:
    large = [file for file in files if file.size >= LARGE_BYTES]
    for number, file in enumerate(large, 1):
        size = f"{file.size / 2**30:.2f} GB, file {number} of {len(large)}"
        report("progress", message=f"Uploading {file.path} to {target.repo}: {size}")
        operation = operations[file.path]

        def send(operation: "CommitOperationAdd" = operation) -> None:
            api.preupload_lfs_files(target.repo, [operation], free_memory=False)

        patiently(target, send, report)


def commit_to(
    api: "HfApi", target: Target, head: Head, operations: "list[CommitOperationAdd]", message: str, report: Report
) -> str:
    """The new commit. ParentMoved when the head is another one by now, which may be this very commit, its answer lost."""
    from huggingface_hub.errors import HfHubHTTPError

    def commit() -> str:
        try:
            made = api.create_commit(target.repo, operations, commit_message=message, parent_commit=head.commit)
        except HfHubHTTPError as problem:
            if status_of(problem) == 412:
                raise ParentMoved from problem
            raise
        return made.oid

    return patiently(target, commit, report)
