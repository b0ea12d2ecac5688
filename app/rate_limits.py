"""How many requests a tenant may send in a minute, counted by each process of the API for itself."""

import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.error_handlers import render
from app.errors import RateLimited
from app.keys.scopes import Principal
from app.settings import Settings

PER_MINUTE = 6000
"""Unless it is set, once there are keys."""


class Limiter:
    def __init__(self, settings: Settings):
        self._setting = settings.requests_per_minute
        self._counts = FixedWindowRateLimiter(MemoryStorage())

    def count(self, tenant_id: str, *, keyed: bool) -> tuple[bool, dict[str, str]]:
        """Whether one more request may pass, and what to tell of it in headers; nothing where there is no limit."""
        limit = self._setting if self._setting is not None else PER_MINUTE * keyed
        if limit == 0:
            return True, {}
        item = RateLimitItemPerMinute(limit)
        passes = self._counts.hit(item, tenant_id)
        window = self._counts.get_window_stats(item, tenant_id)
        seconds = max(1, round(window.reset_time - time.time()))
        headers = {
            "x-ratelimit-limit-requests": str(limit),
            "x-ratelimit-remaining-requests": str(window.remaining),
            "x-ratelimit-reset-requests": f"{seconds}s",
        }
        return passes, headers | ({} if passes else {"retry-after": str(seconds)})


class RateLimits:
    """ASGI middleware inside the guard, which has found out who calls. Open paths are not counted."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller: Principal | None = scope.get("state", {}).get("principal")
        if scope["type"] != "http" or caller is None:
            await self.app(scope, receive, send)
            return
        state = scope["app"].state
        passes, headers = state.limiter.count(caller.tenant_id, keyed=not state.keyring.is_empty)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        if passes:
            await self.app(scope, receive, send_with_headers if headers else send)
            return
        refusal = RateLimited(f"Too many requests in this minute. Go on in {headers['retry-after']} seconds.")
        await render(refusal)(scope, receive, send_with_headers)
