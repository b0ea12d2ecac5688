"""What can be done with webhook endpoints and deliveries. The caller's transaction makes it whole."""

import logging
from datetime import timedelta
from typing import Any

from cryptography.fernet import InvalidToken
from sqlalchemy import Engine
from sqlmodel import Session, select

from app.db import read_session, write_session
from app.errors import Conflict, Detail, InvalidRequest, InvalidSpec
from app.ids import new_id
from app.models import WebhookDelivery, WebhookEndpoint, now
from app.queue import ring
from app.secrets.encryption import open_keys
from app.settings import Settings
from app.tenancy import tenant_of
from app.webhooks import repository
from app.webhooks.addresses import UnsafeTarget, parse_url
from app.webhooks.delivery import keys_of, send_event
from app.webhooks.events import WebhookEvent
from app.webhooks.outbox import QUEUE
from app.webhooks.schemas import EndpointChange, NewEndpoint
from app.webhooks.signing import hint_at, make_secret

log = logging.getLogger(__name__)

MAX_ENDPOINTS = 100
OVERLAP = timedelta(hours=24)


def create(session: Session, settings: Settings, asked: NewEndpoint) -> tuple[WebhookEndpoint, str]:
    """The endpoint and its signing secret, which nobody is told again."""
    host = check_url(settings, asked.url)
    if repository.count_endpoints(session) >= MAX_ENDPOINTS:
        raise Conflict(f"There are {MAX_ENDPOINTS} webhook endpoints, the most there can be.", code="too_many_endpoints")
    secret = make_secret()
    endpoint = WebhookEndpoint(
        tenant_id=tenant_of(session),
        name=asked.name or host,
        url=asked.url,
        event_types=[str(type) for type in asked.event_types],
        encrypted_secret=open_keys(settings).encrypt(secret.encode()).decode(),
        secret_hint=hint_at(secret),
    )
    session.add(endpoint)
    session.flush()
    return endpoint, secret


def check_url(settings: Settings, url: str) -> str:
    """The URL's host. InvalidSpec for one that is never sent to."""
    try:
        return parse_url(url, settings.webhook_allow_cidrs).host
    except UnsafeTarget as problem:
        raise InvalidSpec.of([Detail("url", f"url: {problem}.")]) from None


def update(session: Session, settings: Settings, endpoint_id: str, change: EndpointChange) -> WebhookEndpoint:
    """Deliveries that wait keep the URL that they were made for, and wait no longer when the endpoint is disabled."""
    endpoint = repository.get_endpoint(session, endpoint_id, lock=True)
    if change.url is not None:
        check_url(settings, change.url)
    asked = change.model_dump(mode="json", exclude_none=True)
    enabled = asked.pop("enabled", None)
    changed = {name: value for name, value in asked.items() if getattr(endpoint, name) != value}
    if enabled is not None and enabled != (endpoint.disabled_at is None):
        changed |= {"disabled_at": None, "disabled_reason": None} if enabled else disabled("It was disabled by request.")
        if not enabled:
            repository.give_up(session, endpoint)
    if changed:
        for name, value in (changed | {"updated_at": now()}).items():
            setattr(endpoint, name, value)
        session.add(endpoint)
    return endpoint


def disabled(reason: str) -> dict[str, Any]:
    return {"disabled_at": now(), "disabled_reason": reason}


def delete(session: Session, endpoint_id: str) -> None:
    """With its deliveries, also those that wait."""
    session.delete(repository.get_endpoint(session, endpoint_id, lock=True))


def rotate_secret(session: Session, settings: Settings, endpoint_id: str, *, keep_old: bool) -> tuple[WebhookEndpoint, str]:
    """A new signing secret. The old one signs beside it for OVERLAP, or no more."""
    endpoint = repository.get_endpoint(session, endpoint_id, lock=True)
    secret = make_secret()
    endpoint.old_encrypted_secret = endpoint.encrypted_secret if keep_old else None
    endpoint.old_secret_until = now() + OVERLAP if keep_old else None
    endpoint.encrypted_secret = open_keys(settings).encrypt(secret.encode()).decode()
    endpoint.secret_hint, endpoint.updated_at = hint_at(secret), now()
    session.add(endpoint)
    return endpoint, secret


def test(engine: Engine, settings: Settings, tenant_id: str, endpoint_id: str, type: WebhookEvent) -> int:
    """Sends a sample event, of a job that does not exist, at once; the receiver's status. InvalidRequest when none came.

    No transaction is open while it is sent, and nothing of it is kept.
    """
    with read_session(engine, tenant_id) as session:
        endpoint = repository.get_endpoint(session, endpoint_id)
        url, keys = endpoint.url, keys_of(endpoint, settings)
    if not keys:
        raise InvalidRequest("No key opens the endpoint's signing secret. Rotate it.", code="webhook_test_failed")
    status = type.rpartition(".")[2]
    data = {"id": new_id("job_"), "status": {"started": "running", "resumed": "queued"}.get(status, status), "artifacts": []}
    event = {"id": new_id("evt_"), "object": "event", "type": str(type), "created_at": int(now().timestamp()), "data": data}
    attempt = send_event(settings, url, event, keys)
    if attempt.status_code is None:
        raise InvalidRequest(f"The receiver was not reached: {attempt.error}", param="url", code="webhook_test_failed")
    return attempt.status_code


def redeliver(session: Session, delivery_id: str) -> WebhookDelivery:
    """Sends a delivery again, at once and by the whole schedule; one that waits goes at once."""
    delivery = repository.get_delivery(session, delivery_id, lock=True)
    if delivery.endpoint_id and session.get_one(WebhookEndpoint, delivery.endpoint_id).disabled_at:
        message = f'The endpoint {delivery.endpoint_id} is disabled. POST {{"enabled": true}} to it first.'
        raise Conflict(message, param="delivery_id", code="webhook_endpoint_disabled")
    if delivery.status != repository.PENDING:
        delivery.tries = 0
    delivery.status, delivery.due_at = repository.PENDING, now()
    session.add(delivery)
    ring(session, QUEUE)
    return delivery


def renew(engine: Engine, settings: Settings) -> None:
    """Encrypts signing secrets with the first key, as `app.secrets.service.renew` does with stored ones."""
    keys = open_keys(settings)
    with write_session(engine) as session:
        for endpoint in session.exec(select(WebhookEndpoint).with_for_update()):
            try:
                endpoint.encrypted_secret = keys.rotate(endpoint.encrypted_secret.encode()).decode()
                if endpoint.old_encrypted_secret:
                    endpoint.old_encrypted_secret = keys.rotate(endpoint.old_encrypted_secret.encode()).decode()
            except InvalidToken:
                log.error("no key opens the signing secret of %s: rotate it, or give the key of its time", endpoint.id)
            else:
                session.add(endpoint)
