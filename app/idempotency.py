"""`Idempotency-Key`: a request that creates something is carried out once, however often its client sends it.

What was made is remembered in the transaction that made it, so the two are there together or not at all. A request that was
refused is not remembered.
"""

import hashlib
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import Engine, delete
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from app.db import read_session, write_session
from app.errors import Conflict
from app.models import IdempotentRequest, now

KEPT = timedelta(hours=24)


class InFlight(Conflict):
    """The same request is being carried out; asked again a little later it will be answered."""

    code = "idempotency_in_flight"
    headers = {"retry-after": "1"}


class Once:
    """What a creating endpoint asks for; without a key the request is carried out each time."""

    def __init__(self, engine: Engine, tenant_id: str, operation: str, key: str | None):
        self._engine, self._tenant_id, self._operation, self._key = engine, tenant_id, operation, key

    def run(self, session: Session, body: str, create: Callable[[], str]) -> str:
        """The id of what `create` makes in the session, or of what it made when the same body came under this key before.

        Conflict when another body did, InFlight when another transaction is just committing the same.
        """
        if self._key is None:
            return create()
        digest = hashlib.sha256(f"{self._operation}\n{body}".encode()).hexdigest()
        earlier = self._find(digest)
        if earlier is not None:
            return earlier
        made = create()
        session.add(IdempotentRequest(tenant_id=self._tenant_id, key=self._key, digest=digest, resource_id=made))
        try:
            session.flush()
        except IntegrityError:
            message = "A request with this Idempotency-Key is being carried out. Send it again in a second."
            raise InFlight(message, param="Idempotency-Key") from None
        return made

    def _find(self, digest: str) -> str | None:
        """In a session of its own: no transaction is open while `create` asks the hub."""
        with read_session(self._engine) as session:
            earlier = session.get(IdempotentRequest, (self._tenant_id, self._key))
        if earlier is None:
            return None
        if earlier.digest != digest:
            message = "Another request was sent with this Idempotency-Key. Give each request a key of its own."
            raise Conflict(message, param="Idempotency-Key", code="idempotency_conflict")
        return earlier.resource_id


def forget_old(engine: Engine) -> None:
    with write_session(engine) as session:
        session.execute(delete(IdempotentRequest).where(col(IdempotentRequest.created_at) < now() - KEPT))
