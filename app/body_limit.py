"""How large a request may be. FastAPI's own limit answers in plain text and without a request id, so this is ours."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.error_handlers import render
from app.errors import InvalidRequest, TooLarge


class BodyLimit:
    """ASGI middleware: refuses by the announced length at once, and by the count where none is announced or it lies.

    It also refuses an address with a NUL, which no name has and not every database takes.
    """

    def __init__(self, app: ASGIApp, default: int, by_path: dict[str, int]):
        self.app, self.default, self.by_path = app, default, by_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
            await render(InvalidRequest("The address holds a NUL character; nothing is named so."))(scope, receive, send)
            return
        limit, received = self.by_path.get(scope["path"], self.default), 0
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            await render(TooLarge(f"The body is larger than the {limit} bytes that this address takes."))(scope, receive, send)
            return

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(TooLarge.status)  # the one error that FastAPI lets through while it reads a body
            return message

        await self.app(scope, receive_counted, send)
