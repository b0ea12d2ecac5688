"""What the service answers when it cannot do what was asked.

    TunesmithError
    ├── InvalidRequest        400   the request as a whole is malformed
    ├── Unauthorized          401
    ├── Forbidden             403
    ├── NotFound              404
    ├── Conflict              409   the state of the resource forbids it; trying again will not help
    ├── TooLarge              413
    ├── InvalidSpec           422   one or more fields are wrong
    │   └── NotAvailable      422   this build does not do it
    ├── RateLimited           429   too many requests: wait and go on
    ├── QuotaExceeded         429   too much at a time: waiting alone will not help
    ├── Unavailable           503
    └── DiskFull              507

Each renders as `{"error": {"message", "type", "param", "code", "details"?}}`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class TunesmithError(Exception):
    status = 500
    type = "server_error"
    code: str | None = "internal"
    headers: dict[str, str] = {}

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, details: list[dict[str, Any]] | None = None
    ):
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.details = details

    def to_json(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error | ({"details": self.details} if self.details else {})}


class InvalidRequest(TunesmithError):
    status, type, code = 400, "invalid_request_error", "invalid_request"


class Unauthorized(TunesmithError):
    status, type, code = 401, "authentication_error", "unauthorized"
    headers = {"www-authenticate": "Bearer"}


class Forbidden(TunesmithError):
    status, type, code = 403, "permission_error", "forbidden"


class NotFound(TunesmithError):
    status, type, code = 404, "invalid_request_error", "not_found"


class Conflict(TunesmithError):
    status, type, code = 409, "conflict_error", "conflict"
    headers = {"x-should-retry": "false"}


class TooLarge(TunesmithError):
    status, type, code = 413, "invalid_request_error", "too_large"


@dataclass(frozen=True)
class Detail:
    """One field that is wrong: `param` is its JSON path, `patch` the JSON that would put it right, where one is known."""

    param: str
    message: str
    code: str = "invalid_spec"
    patch: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        plain = {"message": self.message, "param": self.param, "code": self.code}
        return plain | ({"patch": self.patch} if self.patch else {})


class InvalidSpec(TunesmithError):
    status, type, code = 422, "invalid_request_error", "invalid_spec"

    @classmethod
    def of(cls, details: Sequence[Detail]) -> "InvalidSpec":
        """One error of many: it speaks of the first and lists them all."""
        first, others = details[0], len(details) - 1
        message = f"{first.message} ({others} more in details.)" if others else first.message
        return cls(message, param=first.param, code=first.code, details=[detail.to_json() for detail in details])


class NotAvailable(InvalidSpec):
    code = "not_available"


class RateLimited(TunesmithError):
    status, type, code = 429, "rate_limit_error", "rate_limited"


class QuotaExceeded(TunesmithError):
    status, type, code = 429, "rate_limit_error", "quota_exceeded"
    headers = {"x-should-retry": "false"}


class Unavailable(TunesmithError):
    status, type, code = 503, "server_error", "unavailable"


class DiskFull(TunesmithError):
    status, type, code = 507, "server_error", "disk_full"
