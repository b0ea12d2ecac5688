"""What can be done with secrets. A value leaves here only for a stage that needs it, or for a call to the hub."""

import logging

from cryptography.fernet import InvalidToken, MultiFernet
from sqlalchemy import Engine
from sqlmodel import Session, select

from app.db import write_session
from app.models import Secret, now
from app.secrets import repository
from app.secrets.encryption import open_keys
from app.settings import Settings
from app.tenancy import tenant_of

log = logging.getLogger(__name__)


def put(session: Session, settings: Settings, name: str, value: str) -> Secret:
    """Stores a new secret, or another value under a known name."""
    encrypted = open_keys(settings).encrypt(value.encode()).decode()
    secret = repository.find(session, tenant_of(session), name, lock=True)
    if secret is None:
        secret = Secret(tenant_id=tenant_of(session), name=name, encrypted=encrypted)
    else:
        secret.encrypted, secret.updated_at = encrypted, now()
    session.add(secret)
    session.flush()
    return secret


def delete(session: Session, name: str) -> None:
    """Jobs that still name it fail when their next stage asks for it."""
    session.delete(repository.get(session, tenant_of(session), name))


def read(session: Session, settings: Settings, tenant_id: str, name: str) -> str | None:
    """The value; None when the tenant has no such secret, or there is no key that opens it."""
    secret = repository.find(session, tenant_id, name)
    return None if secret is None else unseal(open_keys(settings), secret.encrypted)


def unseal(keys: MultiFernet, encrypted: str) -> str | None:
    try:
        return keys.decrypt(encrypted).decode()
    except InvalidToken:
        return None


def renew(engine: Engine, settings: Settings) -> None:
    """Encrypts with the first key whatever an older one encrypts. Run at each start: afterwards older keys can go."""
    keys = open_keys(settings)
    with write_session(engine) as session:
        for secret in session.exec(select(Secret).with_for_update()):
            try:
                secret.encrypted = keys.rotate(secret.encrypted.encode()).decode()
            except InvalidToken:
                log.error(
                    "no key opens the secret %r; put its value anew, or give the key that it was stored with", secret.name
                )
            else:
                session.add(secret)
