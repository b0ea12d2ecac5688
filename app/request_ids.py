"""Every request has an id: the one that it came with as `x-request-id`, or one made here.

Its answer carries it, and so do the lines of the API's log, the events that the request caused, and the log lines of workers
about the stages that it queued.
"""

import logging
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.error_handlers import render
from app.errors import TunesmithError
from app.ids import new_id
from app.keys.scopes import OPEN_PREFIX

log = logging.getLogger(__name__)

GIVEN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""What is taken over from a client; anything else is replaced, not refused."""


class RequestIds:
    """The outermost ASGI middleware: it also turns what nobody caught into a 500 without details."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given, started = Headers(scope=scope).get("x-request-id", ""), False
        request_id = given if GIVEN.fullmatch(given) else new_id("req_")
        scope.setdefault("state", {})["request_id"] = request_id
        what = f"{request_id}: {scope['method']} {loggable(scope['path'])}"

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
                log.info("%s %d", what, message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            log.info("%s was broken off by the client", what)
        except Exception:
            log.exception("%s failed", what)
            if started:
                raise
            error = TunesmithError(f"The server failed. Its log names the cause under {request_id}.")
            await render(error)(scope, receive, send_with_id)


def loggable(path: str) -> str:
    """A link opens its file for whoever has it, so its signature stays out of logs. So do line breaks."""
    if path.startswith(OPEN_PREFIX):
        path = OPEN_PREFIX + "…/" + path.removeprefix(OPEN_PREFIX).partition("/")[2]
    return path if path.isprintable() else ascii(path)
