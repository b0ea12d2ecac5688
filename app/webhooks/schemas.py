"""Webhook endpoints as OpenAI's SDK reads them, and deliveries, which are our own. Signing secrets are shown once."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.models import WebhookDelivery as DeliveryRow
from app.models import WebhookEndpoint as EndpointRow
from app.webhooks.events import DEFAULT_EVENTS, WebhookEvent

EventTypes = Annotated[list[WebhookEvent], Field(min_length=1, max_length=len(WebhookEvent))]
EndpointName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
EndpointUrl = Annotated[str, StringConstraints(min_length=1, max_length=2048)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class NewEndpoint(Body):
    """`name` is the URL's host where none is given."""

    url: EndpointUrl
    name: EndpointName | None = None
    event_types: EventTypes = list(DEFAULT_EVENTS)


class EndpointChange(Body):
    """What is left out stays. `enabled` brings back an endpoint that was disabled, or disables it."""

    url: EndpointUrl | None = None
    name: EndpointName | None = None
    event_types: EventTypes | None = None
    enabled: bool | None = None


class Rotation(Body):
    keep_old_secret_active_for_24_hours: bool = False
    """Messages then carry two signatures for a day, so that receivers can change over one by one."""


class EndpointTest(Body):
    event_type: WebhookEvent = WebhookEvent.SUCCEEDED


class WebhookEndpoint(BaseModel):
    """Times are unix seconds."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    name: str
    url: str
    event_types: list[WebhookEvent]
    signing_secret_hint: str
    enabled: bool
    disabled_reason: str | None
    created_at: int
    updated_at: int

    @classmethod
    def of(cls, row: EndpointRow) -> "WebhookEndpoint":
        return cls(**facts_of(row))


class WebhookEndpointWithSecret(WebhookEndpoint):
    signing_secret: str
    """Shown in this answer and never again."""

    @classmethod
    def revealing(cls, row: EndpointRow, signing_secret: str) -> "WebhookEndpointWithSecret":
        return cls(**facts_of(row), signing_secret=signing_secret)


def facts_of(row: EndpointRow) -> dict:
    return {
        **row.model_dump(include={"id", "name", "url", "event_types", "disabled_reason"}),
        "signing_secret_hint": row.secret_hint,
        "enabled": row.disabled_at is None,
        "created_at": int(row.created_at.timestamp()),
        "updated_at": int(row.updated_at.timestamp()),
    }


class DeletedWebhookEndpoint(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class EndpointTestResult(BaseModel):
    """`success` says that the receiver answered, `status_code` what."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: WebhookEvent
    status_code: int
    success: Literal[True] = True


class EventTypeList(BaseModel):
    object: Literal["list"] = "list"
    data: list[WebhookEvent]


class DeliveryAttempt(BaseModel):
    at: datetime
    status_code: int | None
    error: str | None
    """Why there was no answer."""
    duration_seconds: float
    answer: str | None
    """The beginning of the receiver's answer."""


class WebhookDelivery(BaseModel):
    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    job_id: str | None
    endpoint_id: str | None
    """Null for the URL that the job brought."""
    event_id: str
    event_type: WebhookEvent
    url: str
    status: Literal["pending", "delivered", "failed"]
    attempts: list[DeliveryAttempt]
    """Oldest first, the last ones where there were many."""
    next_attempt_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, row: DeliveryRow) -> "WebhookDelivery":
        return cls(**row.model_dump(), next_attempt_at=row.due_at)
