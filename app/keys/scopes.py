"""Who calls, what a key allows, and what a request needs."""

import re
from dataclasses import dataclass
from enum import StrEnum

from app.tenancy import DEFAULT_TENANT


class Scope(StrEnum):
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True)
class Principal:
    """Whoever sent a request; `key_id` is None for the bootstrap key, and for the caller of a server without keys."""

    tenant_id: str
    scopes: frozenset[Scope]
    key_id: str | None = None

    @property
    def is_operator(self) -> bool:
        """Whether it is an administrator of the tenant `default`, who may see other tenants' keys and running stages."""
        return self.tenant_id == DEFAULT_TENANT and Scope.ADMIN in self.scopes


EVERYTHING = frozenset(Scope)
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"})
OPEN_PREFIX = "/v1/links/"
"""What needs no key; a link has a signature of its own."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SCOPE_OF_PREFIX = {"/v1/keys": Scope.ADMIN}
LINK = re.compile(r"/v1/jobs/[^/]+/artifacts/.+/link")
"""Exceptions to the rule that reading needs `read` and all else `write`: who may download may make a link to it."""


def find_scope(method: str, path: str) -> Scope | None:
    """The scope that a request needs; None where it needs no key at all."""
    if path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
        return None
    for prefix, scope in SCOPE_OF_PREFIX.items():
        if path == prefix or path.startswith(f"{prefix}/"):
            return scope
    return Scope.READ if method in SAFE_METHODS or LINK.fullmatch(path) else Scope.WRITE
