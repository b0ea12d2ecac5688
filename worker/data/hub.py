"""The model hub: its errors in our words, and patience while it does not answer."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from app.jobs.states import FailureCode
from worker.stages import StageFailure

ACCESS_HINT = 'store it with `tunesmith secrets set hf`, set hub_token to "secret:hf", then retry.'
PAUSES = (2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
"""Seconds between tries. The clients try again by themselves too, for seconds; this is for minutes."""

T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """What the hub is asked for, in words, the fields of the spec that name it, and the codes for what can be wrong with it."""

    name: str
    param: str
    revision_param: str
    not_found: FailureCode
    gated: FailureCode


def model(repo: str) -> Subject:
    return Subject(f"model {repo}", "base_model", "revision", FailureCode.MODEL_NOT_FOUND, FailureCode.MODEL_GATED)


def data_set(repo: str) -> Subject:
    codes = FailureCode.DATASET_NOT_FOUND, FailureCode.HUB_UNAUTHORIZED
    return Subject(f"data set {repo}", "dataset.hub.repo", "dataset.hub.revision", *codes)


def patiently(subject: Subject, ask: Callable[[], T], report: Any, pauses: tuple[float, ...] | None = None) -> T:
    """What `ask` returns; StageFailure as `hub_errors` says. Asks again while the hub is away, unless it is switched off."""
    for pause in (*(PAUSES if pauses is None else pauses), None):
        try:
            with hub_errors(subject):
                return ask()
        except StageFailure as failure:
            if pause is None or not may_pass(failure):
                raise
            report("progress", message=f"{failure.message} Trying again in {pause:g} s.")
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def may_pass(failure: StageFailure) -> bool:
    from huggingface_hub import constants

    status = status_of(failure.__cause__)
    passing = status is None or status >= 500 or status in (408, 429)
    return failure.code == FailureCode.HUB_UNAVAILABLE and passing and not constants.HF_HUB_OFFLINE


def status_of(problem: BaseException | None) -> int | None:
    """Of the answer that the hub gave, if it gave one."""
    return getattr(getattr(problem, "response", None), "status_code", None)


@contextmanager
def hub_errors(subject: Subject) -> Iterator[None]:
    """Turns what the hub's clients raise into a StageFailure about `subject`."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as problem:
        raise gated(subject) from problem
    except errors.RevisionNotFoundError as problem:
        raise StageFailure(
            subject.not_found,
            f"The {subject.name} has no such revision.",
            hint="Give a branch, tag or commit that exists, or leave it null.",
            param=subject.revision_param,
        ) from problem
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as problem:
        raise StageFailure(
            subject.not_found,
            f"The {subject.name} does not exist on the hub, or is private and your token does not show it.",
            hint=f"Check the name. A private one needs a token of an account that may read it: {ACCESS_HINT}",
            param=subject.param,
        ) from problem
    except errors.LocalEntryNotFoundError as problem:
        cause = problem.__cause__ or problem
        raise of_status(subject, cause) from cause
    except (errors.HTTPError, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError) as problem:
        raise of_status(subject, problem) from problem
    except OSError as problem:
        if "Consistency check" not in str(problem):
            raise
        raise unavailable(subject, "a file arrived incomplete") from problem


def of_status(subject: Subject, problem: BaseException) -> StageFailure:
    """By the status of the hub's answer, or by its having given none."""
    status = status_of(problem)
    if status in (401, 403):
        return StageFailure(
            FailureCode.HUB_UNAUTHORIZED,
            f"The hub refused the token for the {subject.name} (status {status}).",
            hint=f"Give a valid token that allows reading: {ACCESS_HINT}",
            param="hub_token",
        )
    return unavailable(subject, f"it answered with status {status}" if status else type(problem).__name__)


def gated(subject: Subject) -> StageFailure:
    message = f"The {subject.name} is gated, and your token has no access to it, or the job names none."
    hint = f"Accept its terms on its hub page and use a token of that account: {ACCESS_HINT}"
    return StageFailure(subject.gated, message, hint=hint, param=subject.param)


def unavailable(subject: Subject, reason: str) -> StageFailure:
    hint = (
        "Retry when the hub can be reached. Without a network, use the built-in model or a folder under TUNESMITH_MODELS_DIR."
    )
    return StageFailure(
        FailureCode.HUB_UNAVAILABLE, f"The hub could not be reached for the {subject.name}: {reason}.", hint=hint
    )
