"""What goes wrong while writing to the hub, in our words, and the patience with what may pass."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from app.jobs.states import FailureCode
from worker.stages import StageFailure

PAUSES = (2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
"""Seconds between tries, unless the hub names more in Retry-After. Most requests are tried again by the client itself, too."""
LONGEST_PAUSE = 900.0
ANSWER_SECONDS = 300.0
"""How long the hub may be silent. The client by itself would wait for ever."""

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """Where something is to be published: entry number `place` of the spec's `publish`."""

    place: int
    repo: str

    def param(self, field: str) -> str:
        return f"publish[{self.place}].{field}"


class ParentMoved(Exception):
    """Somebody else has committed since the head was read."""


def patiently(target: Target, ask: Callable[[], T], report: Any) -> T:
    """What `ask` returns. Asks again while the hub is ill; StageFailure hub_unavailable when it stays so, and hub_unauthorized
    or invalid_spec when asking again is of no use. ParentMoved passes through."""
    from huggingface_hub import get_session

    for pause in (*PAUSES, None):
        try:
            get_session().timeout = ANSWER_SECONDS
            return ask()
        except (ParentMoved, StageFailure):
            raise
        except Exception as problem:
            failure = explain(target, problem)
            if pause is None or failure.code != FailureCode.HUB_UNAVAILABLE or is_offline():
                raise failure from problem
            seconds = min(max(pause, retry_after(problem)), LONGEST_PAUSE)
            report("progress", message=f"{failure.message} Trying again in {seconds:g} s.")
            time.sleep(seconds)
    raise AssertionError("the last try returns or raises")


def is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def explain(target: Target, problem: Exception) -> StageFailure:
    """StageFailure for what the hub's client raised; what is no fault of the hub is raised again."""
    from huggingface_hub import errors

    status = status_of(problem)
    if status in (401, 402, 403, 404):
        return refused(target, problem, status)
    if isinstance(problem, ValueError) and not isinstance(problem, json.JSONDecodeError) and "metadata" in str(problem):
        return bad_card(target, problem)
    network = (errors.HTTPError, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError, json.JSONDecodeError)
    if status is None and not any(isinstance(cause, network) for cause in causes(problem)) and not is_from_xet(problem):
        raise problem
    reason = f"it answered with status {status}" if status else type(list(causes(problem))[-1]).__name__
    hint = "Retry the job when the hub can be reached: what was trained and what has arrived there is kept."
    return StageFailure(
        FailureCode.HUB_UNAVAILABLE,
        f"{target.repo} could not be written to: {reason}{words_of(problem)}.",
        hint=hint,
        param=target.param("repo"),
    )


def refused(target: Target, problem: Exception, status: int) -> StageFailure:
    """401 is said of the token; 403 and 404 of the repository, 402 of its owner's account."""
    field = "token" if status == 401 else "repo"
    hint = (
        f"Make a token that may write to {target.repo}, store it under the same name with `tunesmith secrets set`, "
        "and retry the job; or name another repository in the retry. Only what is missing runs again."
    )
    message = f"The hub does not let this token write to {target.repo} (status {status}{words_of(problem)})."
    return StageFailure(FailureCode.HUB_UNAUTHORIZED, message, hint=hint, param=target.param(field))


def bad_card(target: Target, problem: Exception) -> StageFailure:
    return StageFailure(
        FailureCode.INVALID_SPEC,
        f"The hub refuses the model card for {target.repo}: {' '.join(str(problem).split())}",
        hint="Correct the front matter of the base model's README.md, from which the licence is taken, then retry the job.",
        param="base_model",
    )


def causes(problem: BaseException | None) -> Iterator[BaseException]:
    """The problem and what it came from: the client wraps what goes wrong with a large file."""
    while problem is not None:
        yield problem
        problem = problem.__cause__


def response_of(problem: BaseException) -> Any:
    answers = (getattr(cause, "response", None) for cause in causes(problem))
    return next((answer for answer in answers if answer is not None), None)


def status_of(problem: BaseException) -> int | None:
    return getattr(response_of(problem), "status_code", None)


def is_from_xet(problem: BaseException) -> bool:
    """The transfer library of large files has kinds of errors of its own, and has tried again by itself."""
    return any("xet" in f"{type(cause).__module__} {type(cause).__name__} {cause}".lower() for cause in causes(problem))


def retry_after(problem: BaseException) -> float:
    """The seconds that the hub asks to wait, 0 when it does not say."""
    answer = response_of(problem)
    said = answer.headers.get("Retry-After", "") if answer is not None else ""
    return float(said) if said.isdigit() else 0.0


def words_of(problem: BaseException) -> str:
    """What the hub itself says, for instance that a quota is used up."""
    said = next((getattr(cause, "server_message", None) for cause in causes(problem)), None)
    return f": {' '.join(str(said).split())[:300].rstrip('.')}" if said else ""
