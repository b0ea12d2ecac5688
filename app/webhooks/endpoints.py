"""/v1/webhook_endpoints in OpenAI's shape, and /v1/webhook_deliveries, what was sent to them and to jobs' own URLs."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.dependencies import Caller, EngineDep, ReadSession, SettingsDep, WriteSession
from app.pagination import MAX_LIMIT, After, Limit, Page, make_page
from app.strictness import OpenAIRoute, StrictRoute
from app.webhooks import repository, schemas, service
from app.webhooks.events import WebhookEvent

router = APIRouter(prefix="/v1", tags=["webhooks"], route_class=OpenAIRoute)
native_router = APIRouter(prefix="/v1/webhook_deliveries", tags=["webhooks"], route_class=StrictRoute)

Filter = Annotated[str | None, Query(max_length=200)]


@router.get("/webhook_event_types")
def list_event_types() -> schemas.EventTypeList:
    """What an endpoint can be told of."""
    return schemas.EventTypeList(data=list(WebhookEvent))


@router.post("/webhook_endpoints")
def create_endpoint(
    body: schemas.NewEndpoint, session: WriteSession, settings: SettingsDep
) -> schemas.WebhookEndpointWithSecret:
    """A URL that is told of all jobs. This answer alone holds the secret that its messages are signed with."""
    return schemas.WebhookEndpointWithSecret.revealing(*service.create(session, settings, body))


@router.get("/webhook_endpoints")
def list_endpoints(session: ReadSession, limit: Limit = 20, after: After = None) -> Page[schemas.WebhookEndpoint]:
    """Newest first."""
    limit = min(limit, MAX_LIMIT)
    rows = repository.page_endpoints(session, limit=limit, after=after)
    return make_page([schemas.WebhookEndpoint.of(row) for row in rows], limit)


@router.get("/webhook_endpoints/{endpoint_id}")
def get_endpoint(endpoint_id: str, session: ReadSession) -> schemas.WebhookEndpoint:
    return schemas.WebhookEndpoint.of(repository.get_endpoint(session, endpoint_id))


@router.post("/webhook_endpoints/{endpoint_id}", operation_id="update_endpoint_by_post")
@router.patch("/webhook_endpoints/{endpoint_id}", operation_id="update_endpoint")
def update_endpoint(
    endpoint_id: str, body: schemas.EndpointChange, session: WriteSession, settings: SettingsDep
) -> schemas.WebhookEndpoint:
    """What is left out stays as it is. Deliveries that wait go to the URL that they were made for."""
    return schemas.WebhookEndpoint.of(service.update(session, settings, endpoint_id, body))


@router.delete("/webhook_endpoints/{endpoint_id}")
def delete_endpoint(endpoint_id: str, session: WriteSession) -> schemas.DeletedWebhookEndpoint:
    """Its deliveries go with it, also those that wait."""
    service.delete(session, endpoint_id)
    return schemas.DeletedWebhookEndpoint(id=endpoint_id)


@router.post("/webhook_endpoints/{endpoint_id}/rotate_secret")
def rotate_secret(
    endpoint_id: str, session: WriteSession, settings: SettingsDep, body: schemas.Rotation | None = None
) -> schemas.WebhookEndpointWithSecret:
    """A new signing secret, at once. Where the old one is kept, messages carry both signatures for 24 hours."""
    keep_old = bool(body and body.keep_old_secret_active_for_24_hours)
    rotated = service.rotate_secret(session, settings, endpoint_id, keep_old=keep_old)
    return schemas.WebhookEndpointWithSecret.revealing(*rotated)


@router.post("/webhook_endpoints/{endpoint_id}/test")
def test_endpoint(
    endpoint_id: str, engine: EngineDep, settings: SettingsDep, caller: Caller, body: schemas.EndpointTest | None = None
) -> schemas.EndpointTestResult:
    """Sends a sample event now and waits for the answer; 400 `webhook_test_failed` when none comes within 15 seconds."""
    type = (body or schemas.EndpointTest()).event_type
    status = service.test(engine, settings, caller.tenant_id, endpoint_id, type)
    return schemas.EndpointTestResult(webhook_endpoint_id=endpoint_id, event_type=type, status_code=status)


@native_router.get("")
def list_deliveries(
    session: ReadSession, limit: Limit = 20, after: After = None, job: Filter = None, endpoint: Filter = None
) -> Page[schemas.WebhookDelivery]:
    """Newest first, with every attempt; `job` and `endpoint` choose those of one."""
    limit = min(limit, MAX_LIMIT)
    rows = repository.page_deliveries(session, limit=limit, after=after, job=job, endpoint=endpoint)
    return make_page([schemas.WebhookDelivery.of(row) for row in rows], limit)


@native_router.post("/{delivery_id}/redeliver", status_code=202)
def redeliver(delivery_id: str, session: WriteSession) -> schemas.WebhookDelivery:
    """Sends it again, under the same `webhook-id`. 409 while its endpoint is disabled."""
    return schemas.WebhookDelivery.of(service.redeliver(session, delivery_id))
