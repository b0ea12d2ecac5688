"""What the service answers when it cannot do what was asked.

    TunesmithError
    ├── InvalidRequest        400   the request as a whole is malformed
    ├── Unauthorized          401
    ├── Forbidden             403
    ├── NotFound              404
    ├── Conflict              409   the state of the resource forbids it; trying again will not help
    ├── TooLarge              413
    ├── InvalidSpec           422   one or more fields are wrong
    └── Unavailable           503

Each renders as `{"error": {"message", "type", "param", "code", "details"?}}`.
"""

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


class InvalidSpec(TunesmithError):
    status, type, code = 422, "invalid_request_error", "invalid_spec"


class Unavailable(TunesmithError):
    status, type, code = 503, "server_error", "unavailable"
