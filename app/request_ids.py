"""Every answer carries an `x-request-id`, and the log of what went wrong names it."""

import logging

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.error_handlers import render
from app.errors import TunesmithError
from app.ids import new_id

log = logging.getLogger(__name__)


class RequestIds:
    """The outermost ASGI middleware: it also turns what nobody caught into a 500 without details."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, started = new_id("req_"), False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            log.info("%s: %s %s was broken off by the client", request_id, scope["method"], scope["path"])
        except Exception:
            log.exception("%s: %s %s failed", request_id, scope["method"], scope["path"])
            if started:
                raise
            error = TunesmithError(f"The server failed. Its log names the cause under {request_id}.")
            await render(error)(scope, receive, send_with_id)
