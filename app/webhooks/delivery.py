"""One delivery from its claim to its end: what is sent, and what follows from the answer."""

import json
import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlmodel import Session

from app.models import WebhookDelivery, WebhookEndpoint, now
from app.secrets import service as secrets
from app.secrets.encryption import open_keys
from app.settings import Settings
from app.webhooks import repository
from app.webhooks.schedule import pause_after, read_retry_after
from app.webhooks.sender import Attempt, send
from app.webhooks.signing import is_secret, sign

KEPT_ATTEMPTS = 40
GONE = 410


@dataclass(frozen=True)
class Parcel:
    """A claimed delivery and the keys that it is signed with, none when they are gone."""

    delivery: WebhookDelivery
    keys: list[str]

    def send(self, settings: Settings) -> Attempt:
        """Takes seconds; no session is open meanwhile."""
        if not self.keys:
            what = f"secret {self.delivery.secret_name!r}" if self.delivery.secret_name else "endpoint's signing secret"
            return Attempt(None, f"Not sent: the {what} is gone, or is no signing secret.", 0.0)
        return send_event(settings, self.delivery.url, self.delivery.body, self.keys)


def send_event(settings: Settings, url: str, body: dict[str, Any], keys: list[str]) -> Attempt:
    """Under the event's own id, which stays the same however often it is sent."""
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return send(url, content, sign(body["id"], now(), content, keys), settings.webhook_allow_cidrs)


def claim(session: Session, settings: Settings) -> Parcel | None:
    delivery = repository.claim_delivery(session, settings.lease_seconds)
    return Parcel(delivery, find_keys(session, settings, delivery)) if delivery else None


def find_keys(session: Session, settings: Settings, delivery: WebhookDelivery) -> list[str]:
    if delivery.endpoint_id:
        return keys_of(session.get_one(WebhookEndpoint, delivery.endpoint_id), settings)
    key = secrets.read(session, settings, delivery.tenant_id, delivery.secret_name or "")
    return [key] if key and is_secret(key) else []


def keys_of(endpoint: WebhookEndpoint, settings: Settings) -> list[str]:
    """The newest first; after a rotation for a while the one before too. Those that no key opens are left out."""
    sealed = [endpoint.encrypted_secret]
    if endpoint.old_encrypted_secret and endpoint.old_secret_until and endpoint.old_secret_until > now():
        sealed.append(endpoint.old_encrypted_secret)
    box = open_keys(settings)
    return [key for text in sealed if (key := secrets.unseal(box, text))]


def extend(session: Session, parcel: Parcel, lease_seconds: float) -> None:
    repository.write_delivery(session, parcel.delivery, lease_until=now() + timedelta(seconds=lease_seconds))


def settle(session: Session, parcel: Parcel, attempt: Attempt) -> None:
    """Writes the attempt down, and when the next one is, if any. A receiver that answers 410 gets nothing any more."""
    delivery, tries = parcel.delivery, parcel.delivery.tries + 1
    attempts = [*delivery.attempts, describe(attempt)][-KEPT_ATTEMPTS:]
    values: dict[str, Any] = {"attempts": attempts, "tries": tries, "lease_until": None, "due_at": None}
    wish = read_retry_after(attempt.retry_after, now())
    pause = pause_after(tries, random.random(), wish)  # noqa: S311 — not a secret
    if attempt.succeeded:
        values["status"] = repository.DELIVERED
    elif pause is None or attempt.status_code == GONE:
        values["status"] = repository.FAILED
    else:
        values["due_at"] = now() + timedelta(seconds=pause)
    if repository.write_delivery(session, delivery, **values) and attempt.status_code == GONE and delivery.endpoint_id:
        disable(session, session.get_one(WebhookEndpoint, delivery.endpoint_id))


def describe(attempt: Attempt) -> dict[str, Any]:
    return {
        "at": now().isoformat(),
        "status_code": attempt.status_code,
        "error": attempt.error,
        "duration_seconds": attempt.duration_seconds,
        "answer": attempt.answer,
    }


def disable(session: Session, endpoint: WebhookEndpoint) -> None:
    endpoint.disabled_at, endpoint.disabled_reason = now(), "The receiver answered 410 Gone."
    session.add(endpoint)
    repository.give_up(session, endpoint)
