"""Who may call. Without a key only this machine's own programs: a web page that a browser here happens to show may not."""

import ipaddress
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.error_handlers import render
from app.errors import Forbidden, TunesmithError, Unauthorized
from app.keys.keyring import Entry, Keyring
from app.keys.scopes import EVERYTHING, SAFE_METHODS, Principal, find_scope
from app.tenancy import DEFAULT_TENANT

ANYBODY = Entry(Principal(DEFAULT_TENANT, EVERYTHING))
"""The caller of a server without keys."""


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without a port, can only mean this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_caller(method: str, headers: Headers) -> None:
    """The guard of a server without keys, against DNS rebinding and cross-site requests."""
    host = headers.get("host", "")
    if not is_loopback(urlsplit(f"//{host}").hostname or ""):
        raise Forbidden("This server has no key, so it answers only to localhost. `tunesmith keys create --local` makes one.")
    if method in SAFE_METHODS:
        return
    origin = headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
    if foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Forbidden("A web page of another origin may not change anything on this server.")


class Guard:
    """ASGI middleware: leaves the caller as `principal` in the request's state, or refuses.

    Once there is a key all but the open paths ask for one; until then the caller must be local.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        keyring: Keyring = scope["app"].state.keyring
        if not keyring.is_fresh:
            await run_in_threadpool(keyring.refresh)
        try:
            entry = find_entry(keyring, scope["method"], scope["path"], Headers(scope=scope))
        except TunesmithError as refusal:
            await render(refusal)(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = entry and entry.principal
        await self.app(scope, receive, send)
        if entry and keyring.is_due(entry):
            await run_in_threadpool(keyring.note_use, entry)


def find_entry(keyring: Keyring, method: str, path: str, headers: Headers) -> Entry | None:
    """Who calls; None on an open path. Unauthorized, or Forbidden for a key that does not allow it."""
    if keyring.is_empty:
        check_caller(method, headers)
        return ANYBODY
    needed = find_scope(method, path)
    if needed is None:
        return None
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized("Send a key of this server as 'Authorization: Bearer KEY'.")
    entry = keyring.find(key.strip())
    if entry is None:
        raise Unauthorized("This key is not known here, was revoked, or has expired.")
    if needed not in entry.principal.scopes:
        raise Forbidden(f"This key does not have the scope {needed.value!r}, which this request needs.")
    return entry
