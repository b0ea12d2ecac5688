"""Writes down whom a job's event is to be told to, in the transaction of the event itself."""

from typing import Any
from urllib.parse import urlsplit

from sqlmodel import Session

from app.artifacts import repository as artifacts
from app.artifacts.schemas import Artifact
from app.jobs.spec import SECRET_PREFIX
from app.models import Event, Job, WebhookDelivery, now
from app.queue import ring
from app.settings import Settings
from app.webhooks import repository
from app.webhooks.events import WEBHOOK_EVENTS, WebhookEvent

QUEUE = "notify"


def announce(session: Session, job: Job, event: Event) -> None:
    """One delivery for each endpoint of the job's tenant that asks for such events, and one for the job's own URL."""
    type = WEBHOOK_EVENTS.get(event.type)
    if type is None:
        return
    endpoints = repository.list_interested(session, job.tenant_id, type)
    receivers: list[dict[str, Any]] = [{"endpoint_id": endpoint.id, "url": endpoint.url} for endpoint in endpoints]
    own = job.spec.get("webhook")
    if own and type in own["event_types"]:
        receivers.append({"secret_name": own["secret"].removeprefix(SECRET_PREFIX), "url": own["url"]})
    if not receivers:
        return
    body = describe(session, job, event, type)
    for receiver in receivers:
        delivery = WebhookDelivery(
            tenant_id=job.tenant_id,
            job_id=job.id,
            event_id=event.id,
            event_type=type,
            host=urlsplit(receiver["url"]).hostname or "",
            body=body,
            due_at=now(),
            **receiver,
        )
        session.add(delivery)
    ring(session, QUEUE)


def describe(session: Session, job: Job, event: Event, type: WebhookEvent) -> dict[str, Any]:
    """The body, with the job as this event left it."""
    base_url = Settings().address
    made = [Artifact.of(row, size, base_url) for row, size in artifacts.list_of(session, [job.id])]
    files = [artifact.model_dump(include={"name", "bytes", "sha256", "url"}) for artifact in made]
    data = {"id": job.id, "status": str(job.status), "artifacts": files}
    return {
        "id": event.id,
        "object": "event",
        "type": str(type),
        "created_at": int(event.created_at.timestamp()),
        "data": data,
    }
