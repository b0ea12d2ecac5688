"""Who may call. Without a key only this machine's own programs: a web page that a browser here happens to show may not."""

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.error_handlers import render
from app.errors import Forbidden, TunesmithError, Unauthorized
from app.keys.scopes import EVERYTHING, SAFE_METHODS, Principal, find_scope
from app.settings import Settings
from app.tenancy import DEFAULT_TENANT


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without a port, can only mean this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_key(headers: Headers, key: str) -> None:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    hashes = [hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (given.strip(), key)]
    if scheme.lower() != "bearer" or not hmac.compare_digest(*hashes):
        raise Unauthorized("Send the server's key as 'Authorization: Bearer KEY'.")


def check_caller(method: str, headers: Headers) -> None:
    """The guard of a server without keys, against DNS rebinding and cross-site requests."""
    host = headers.get("host", "")
    if not is_loopback(urlsplit(f"//{host}").hostname or ""):
        raise Forbidden("This server has no key, so it answers only to localhost. Set TUNESMITH_BOOTSTRAP_KEY to serve others.")
    if method in SAFE_METHODS:
        return
    origin = headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
    if foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Forbidden("A web page of another origin may not change anything on this server.")


class Guard:
    """ASGI middleware: leaves the caller as `principal` in the request's state, or refuses.

    With a key configured all but the open paths ask for one; without, the caller must be local.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app
        self.key = settings.bootstrap_key.get_secret_value() if settings.bootstrap_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope.setdefault("state", {})["principal"] = self.find_principal(scope)
            except TunesmithError as refusal:
                await render(refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def find_principal(self, scope: Scope) -> Principal | None:
        headers = Headers(scope=scope)
        if self.key is None:
            check_caller(scope["method"], headers)
        elif find_scope(scope["method"], scope["path"]) is None:
            return None
        else:
            check_key(headers, self.key)
        return Principal(DEFAULT_TENANT, EVERYTHING)
