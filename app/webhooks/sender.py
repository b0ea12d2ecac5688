"""Sends one webhook: looks its name up once, checks every address, and connects to a checked one.

No redirects, no proxies, no connection that is used again; the whole takes at most TOTAL_SECONDS once the name is known, and
of the answer only the first bytes are read.
"""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import httpx2

from app.webhooks.addresses import Address, Network, Target, UnsafeTarget, check_address, parse_url, read_address

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0
ANSWER_BYTES = 1024


@dataclass(frozen=True)
class Attempt:
    """What came of sending. `error` says why there is no status, or `status_code` is the receiver's."""

    status_code: int | None
    error: str | None
    duration_seconds: float
    answer: str | None = None
    """The beginning of the receiver's answer."""
    retry_after: str | None = None

    @property
    def succeeded(self) -> bool:
        return self.status_code is not None and 200 <= self.status_code < 300


def send(url: str, body: bytes, headers: dict[str, str], allowed: Sequence[Network], seconds: float = TOTAL_SECONDS) -> Attempt:
    """POSTs `body`, JSON. Never raises for what a receiver or the network does."""
    start = time.monotonic()
    try:
        target = parse_url(url, allowed)
        addresses = look_up(target, allowed)
        deadline = time.monotonic() + seconds
        return post(target, addresses, body, headers, deadline, start)
    except (UnsafeTarget, OSError, http.client.HTTPException, ValueError) as problem:
        late = time.monotonic() - start >= seconds
        error = f"There was no answer within {seconds:g} seconds." if late else describe(problem)
        return Attempt(None, error, round(time.monotonic() - start, 3))


def look_up(target: Target, allowed: Sequence[Network]) -> list[Address]:
    """All addresses of the target, asked for once. UnsafeTarget when one of them may not be sent to."""
    found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = [address for entry in found if (address := read_address(str(entry[4][0])))]
    for address in addresses:
        check_address(address, target, allowed)
    return addresses


def post(
    target: Target, addresses: list[Address], body: bytes, headers: dict[str, str], deadline: float, start: float
) -> Attempt:
    connection = http.client.HTTPConnection(target.host, target.port)
    try:
        plain = connect(addresses, target.port, deadline)
        with closed_at(plain, deadline):
            connection.sock = secure(plain, target)
            connection.request("POST", target.path, body, common_headers(target) | headers)
            response = connection.getresponse()
            answer = read_beginning(response)
            return Attempt(
                status_code=response.status,
                error=None,
                duration_seconds=round(time.monotonic() - start, 3),
                answer=answer,
                retry_after=response.getheader("retry-after"),
            )
    finally:
        connection.close()


def read_beginning(response: http.client.HTTPResponse) -> str:
    """The status has come and decides; the text is for people."""
    try:
        return response.read(ANSWER_BYTES).decode("utf-8", "replace").replace("\0", "\ufffd")
    except (OSError, http.client.HTTPException):
        return ""


def connect(addresses: list[Address], port: int, deadline: float) -> socket.socket:
    """To the first that answers. Numbers only: nothing is looked up here."""
    problem = OSError("The name has no address.")
    until = min(deadline, time.monotonic() + CONNECT_SECONDS)
    for address in addresses:
        left = until - time.monotonic()
        if left <= 0:
            break
        try:
            return socket.create_connection((str(address), port), timeout=left)
        except OSError as failure:
            problem = failure
    raise problem


@contextmanager
def closed_at(connected: socket.socket, deadline: float) -> Iterator[None]:
    """Cuts the connection at the deadline, whoever reads or writes it by then: time-outs of their own begin anew with each
    byte that a slow receiver sends."""
    handle = connected.dup()
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), shut_down, [handle])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        handle.close()


def shut_down(handle: socket.socket) -> None:
    try:
        handle.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the receiver was faster


def secure(connected: socket.socket, target: Target) -> socket.socket:
    """Its certificate must be for the name in the URL, not for the address."""
    connected.settimeout(TOTAL_SECONDS)
    return trust().wrap_socket(connected, server_hostname=target.host) if target.scheme == "https" else connected


@cache
def trust() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


def common_headers(target: Target) -> dict[str, str]:
    return {
        "Host": target.authority,
        "User-Agent": f"tunesmith/{version('tunesmith')}",
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }


def describe(problem: Exception) -> str:
    """A sentence for the delivery log."""
    if isinstance(problem, UnsafeTarget):
        return f"Not sent: {problem}."
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"The certificate was refused: {problem.verify_message}."
    if isinstance(problem, socket.gaierror):
        return "The name could not be looked up."
    if isinstance(problem, TimeoutError):
        return f"No connection was made within {CONNECT_SECONDS:.0f} seconds."
    if isinstance(problem, http.client.HTTPException):
        return f"The answer was not HTTP: {type(problem).__name__}."
    text = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
    return f"{text[0].upper()}{text[1:].rstrip('.')}."
