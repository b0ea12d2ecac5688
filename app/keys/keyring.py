"""The keys that a process accepts, in memory: read anew once a second, so that a request costs no look into the database.

A key is looked up by its SHA-256. How long that takes could tell something of the hash of a guess, and so nothing of any key.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic

from pydantic import SecretStr
from sqlalchemy import Engine, event, update
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col

from app.db import read_session, write_session
from app.keys import repository
from app.keys.scopes import EVERYTHING, Principal, Scope
from app.keys.service import hash_key
from app.models import ApiKey, now
from app.tenancy import DEFAULT_TENANT

log = logging.getLogger(__name__)

FRESH_SECONDS = 1.0
USE_IS_NOTED_EVERY = timedelta(hours=1)


@dataclass
class Entry:
    principal: Principal
    expires_at: datetime | None = None
    last_used_at: datetime | None = None


class Keyring:
    def __init__(self, engine: Engine, bootstrap_key: SecretStr | None):
        self._engine = engine
        self._bootstrap = {}
        if bootstrap_key is not None:
            self._bootstrap[hash_key(bootstrap_key.get_secret_value())] = Entry(Principal(DEFAULT_TENANT, EVERYTHING))
        self._entries: dict[str, Entry] = {}
        self._fresh_until = 0.0
        self._changes = 0
        self.is_empty = False
        """Whether no key was ever configured: neither the bootstrap key nor one in the database."""

    @property
    def is_fresh(self) -> bool:
        return monotonic() < self._fresh_until

    def refresh(self) -> None:
        until, changes = monotonic() + FRESH_SECONDS, self._changes
        with read_session(self._engine) as session:
            self._entries = self._bootstrap | make_entries(repository.list_all(session, None))
            self.is_empty = not self._entries and repository.is_empty(session)
        self._fresh_until = until if changes == self._changes else 0.0  # what changed since the look began may be missing

    def forget_after_commit(self, session: Session) -> None:
        """For whoever changes keys: what this process knows of them is read anew by the next request."""
        event.listen(session, "after_commit", self._forget, once=True)

    def _forget(self, _session: Session) -> None:
        self._changes += 1
        self._fresh_until = 0.0

    def find(self, key: str) -> Entry | None:
        """None for a key that is unknown, revoked or expired."""
        entry = self._entries.get(hash_key(key))
        return entry if entry and (entry.expires_at is None or entry.expires_at > now()) else None

    def is_due(self, entry: Entry) -> bool:
        """Whether the use of a stored key should be noted."""
        noted = entry.last_used_at
        return entry.principal.key_id is not None and (noted is None or now() - noted > USE_IS_NOTED_EVERY)

    def note_use(self, entry: Entry) -> None:
        """A database that cannot be written to is no reason to refuse the caller."""
        entry.last_used_at = now()
        changed = update(ApiKey).where(col(ApiKey.id) == entry.principal.key_id).values(last_used_at=entry.last_used_at)
        try:
            with write_session(self._engine) as session:
                session.execute(changed)
        except SQLAlchemyError as problem:
            log.warning("the use of key %s could not be noted: %s", entry.principal.key_id, problem)


def make_entries(keys: Iterable[ApiKey]) -> dict[str, Entry]:
    return {
        key.sha256: Entry(Principal(key.tenant_id, frozenset(map(Scope, key.scopes)), key.id), key.expires_at, key.last_used_at)
        for key in keys
    }
