"""Where webhooks may go: the form of their URLs, and the addresses behind them.

A URL's form is judged when it is given, the addresses that its name has each time something is sent.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL_LENGTH = 2048
DEFAULT_PORTS = {"https": 443, "http": 80}
FIRST_OTHER_PORT = 1024
NAME = re.compile(r"([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.?")
"""A host name. Its last label begins with a letter: `127.1`, `2130706433` and `0x7f000001` are addresses in disguise."""

NEVER = [
    ipaddress.ip_network(network)
    for network in (
        "64:ff9b::/96",  # NAT64, and below its local form: an IPv4 address within
        "64:ff9b:1::/48",
        "2001::/23",  # Teredo and other protocol assignments
        "2002::/16",  # 6to4
        "192.88.99.0/24",  # its relays
        "192.0.0.0/24",  # protocol assignments
        "::/96",  # IPv4-compatible
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fec0::/10",  # site-local
        "168.63.129.16/32",  # a cloud's metadata, at an address that looks public
    )
]
"""What `ipaddress` takes for global on some versions of Python, and is not, or only leads elsewhere."""


class UnsafeTarget(Exception):
    """The URL is not one that webhooks are sent to; the message says why."""


@dataclass(frozen=True)
class Target:
    """A URL in parts. `path` has the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(url: str, allowed: Sequence[Network]) -> Target:
    """UnsafeTarget for a URL that can never be sent to. Names are not looked up here."""
    if len(url) > MAX_URL_LENGTH or not re.fullmatch(r"[!-\[\]-~]+", url):
        raise UnsafeTarget(f"a URL of at most {MAX_URL_LENGTH} characters of printable ASCII is needed, without a backslash")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UnsafeTarget("this is no URL") from None
    if parts.scheme not in DEFAULT_PORTS or not url.lower().startswith(f"{parts.scheme}://") or not host:
        raise UnsafeTarget("an https:// URL is needed")
    if parts.scheme == "http" and not allowed:
        raise UnsafeTarget("https:// is needed; http:// is for networks of TUNESMITH_WEBHOOK_ALLOW_CIDRS, which names none")
    if "@" in parts.netloc or "#" in url:
        raise UnsafeTarget("user names, passwords and fragments have no place in a webhook's URL")
    if port is None:
        port = DEFAULT_PORTS[parts.scheme]
    if port not in DEFAULT_PORTS.values() and port < FIRST_OTHER_PORT:
        raise UnsafeTarget(f"port {port} is not one that webhooks are sent to: 80, 443, and from {FIRST_OTHER_PORT} on are")
    target = Target(parts.scheme, host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    address = read_address(host)
    if address is not None:
        check_address(address, target, allowed)
    elif not NAME.fullmatch(host):
        raise UnsafeTarget(f"{host!r} is no host name")
    return target


def read_address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def check_address(address: Address, target: Target, allowed: Sequence[Network]) -> None:
    """UnsafeTarget for one that is not public, unless it is allowed; http only goes where it is allowed by name.

    An https receiver shows by its certificate that it is meant. One that speaks http cannot, and could be read on the way.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_multicast or address.is_unspecified:
        raise UnsafeTarget(f"{target.host} leads to {address}, which is nobody's address")
    if any(address in network for network in allowed):
        return
    if target.scheme == "http":
        raise UnsafeTarget(f"{target.host} leads to {address}, where only https:// may go")
    if not address.is_global or address.is_reserved or any(address in network for network in NEVER):
        raise UnsafeTarget(f"{target.host} leads to {address}, which is not a public address")
