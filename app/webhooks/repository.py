"""SQL about webhook endpoints and deliveries. Nothing here commits.

A claimed delivery has a lease and a raised fence, as a stage run has: two workers never send the same one at a time, and one
whose worker died is sent again.
"""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, or_, update
from sqlmodel import Session, col, select

from app.errors import NotFound
from app.models import WebhookDelivery, WebhookEndpoint, now
from app.tenancy import owned, sees

PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"
MAX_AT_ONE_HOST = 2


def get_endpoint(session: Session, endpoint_id: str, *, lock: bool = False) -> WebhookEndpoint:
    endpoint = session.get(WebhookEndpoint, endpoint_id, with_for_update=lock or None)
    if endpoint is None or not sees(session, endpoint):
        message = f"There is no webhook endpoint {endpoint_id!r}. GET /v1/webhook_endpoints lists them."
        raise NotFound(message, param="endpoint_id", code="webhook_endpoint_not_found")
    return endpoint


def page_endpoints(session: Session, *, limit: int, after: str | None) -> list[WebhookEndpoint]:
    """The newest first: one more than `limit` where there are more."""
    statement = select(WebhookEndpoint).where(owned(session, WebhookEndpoint))
    if after is not None:
        statement = statement.where(WebhookEndpoint.id < after)
    return list(session.exec(statement.order_by(col(WebhookEndpoint.id).desc()).limit(limit + 1)))


def count_endpoints(session: Session) -> int:
    return session.exec(select(func.count()).select_from(WebhookEndpoint).where(owned(session, WebhookEndpoint))).one()


def list_interested(session: Session, tenant_id: str, event_type: str) -> list[WebhookEndpoint]:
    enabled = (WebhookEndpoint.tenant_id == tenant_id, col(WebhookEndpoint.disabled_at).is_(None))
    return [
        endpoint for endpoint in session.exec(select(WebhookEndpoint).where(*enabled)) if event_type in endpoint.event_types
    ]


def get_delivery(session: Session, delivery_id: str, *, lock: bool = False) -> WebhookDelivery:
    delivery = session.get(WebhookDelivery, delivery_id, with_for_update=lock or None)
    if delivery is None or not sees(session, delivery):
        message = f"There is no webhook delivery {delivery_id!r}. GET /v1/webhook_deliveries lists them."
        raise NotFound(message, param="delivery_id", code="webhook_delivery_not_found")
    return delivery


def page_deliveries(
    session: Session, *, limit: int, after: str | None, job: str | None, endpoint: str | None
) -> list[WebhookDelivery]:
    """The newest first: one more than `limit` where there are more."""
    statement = select(WebhookDelivery).where(owned(session, WebhookDelivery))
    if after is not None:
        statement = statement.where(WebhookDelivery.id < after)
    if job is not None:
        statement = statement.where(WebhookDelivery.job_id == job)
    if endpoint is not None:
        statement = statement.where(WebhookDelivery.endpoint_id == endpoint)
    return list(session.exec(statement.order_by(col(WebhookDelivery.id).desc()).limit(limit + 1)))


def _is_due(time: datetime) -> Any:
    free = or_(col(WebhookDelivery.lease_until).is_(None), col(WebhookDelivery.lease_until) < time)
    return (col(WebhookDelivery.status) == PENDING) & (col(WebhookDelivery.due_at) <= time) & free


def has_due(session: Session) -> bool:
    return session.exec(select(WebhookDelivery.id).where(_is_due(now())).limit(1)).first() is not None


def claim_delivery(session: Session, lease_seconds: float) -> WebhookDelivery | None:
    """Takes the delivery that has been due for longest, but none to a host that is being sent to often enough already."""
    time = now()
    other = select(WebhookDelivery.host).where(col(WebhookDelivery.lease_until) >= time).group_by(col(WebhookDelivery.host))
    busy = other.having(func.count() >= MAX_AT_ONE_HOST)
    first = (
        select(WebhookDelivery.id)
        .where(_is_due(time), col(WebhookDelivery.host).not_in(busy))
        .order_by(col(WebhookDelivery.due_at))
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    statement = (
        update(WebhookDelivery)
        .where(col(WebhookDelivery.id) == first, _is_due(time))
        .values(fence=WebhookDelivery.fence + 1, lease_until=time + timedelta(seconds=lease_seconds))
        .returning(WebhookDelivery)
    )
    return session.scalars(statement, execution_options={"populate_existing": True}).one_or_none()


def write_delivery(session: Session, delivery: WebhookDelivery, **values: Any) -> bool:
    """What only the claimer of `delivery` may write. False when it was claimed again since, or is gone."""
    held = (col(WebhookDelivery.id) == delivery.id, col(WebhookDelivery.fence) == delivery.fence)
    statement = update(WebhookDelivery).where(*held).values(**values).returning(col(WebhookDelivery.id))
    return session.execute(statement).first() is not None


def give_up(session: Session, endpoint: WebhookEndpoint) -> None:
    """Fails what waits for an endpoint that wants nothing any more."""
    waiting = (col(WebhookDelivery.endpoint_id) == endpoint.id, col(WebhookDelivery.status) == PENDING)
    values = {"status": FAILED, "due_at": None, "lease_until": None, "fence": WebhookDelivery.fence + 1}
    session.execute(update(WebhookDelivery).where(*waiting).values(**values))


def forget_deliveries(session: Session, before: datetime) -> None:
    """Removes those that ended, of events before that time."""
    over = (col(WebhookDelivery.status) != PENDING, col(WebhookDelivery.created_at) < before)
    session.execute(delete(WebhookDelivery).where(*over))
