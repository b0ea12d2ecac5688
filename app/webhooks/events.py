"""What webhooks tell of, under OpenAI's names where it has some, and the event of a job that each stands for."""

from enum import StrEnum

from app.jobs.states import EventType


class WebhookEvent(StrEnum):
    SUCCEEDED = "fine_tuning.job.succeeded"
    FAILED = "fine_tuning.job.failed"
    CANCELLED = "fine_tuning.job.cancelled"
    STARTED = "tunesmith.job.started"
    PAUSED = "tunesmith.job.paused"
    RESUMED = "tunesmith.job.resumed"


DEFAULT_EVENTS = (WebhookEvent.SUCCEEDED, WebhookEvent.FAILED, WebhookEvent.CANCELLED)

WEBHOOK_EVENTS: dict[EventType, WebhookEvent] = {
    EventType.JOB_STARTED: WebhookEvent.STARTED,
    EventType.JOB_PAUSED: WebhookEvent.PAUSED,
    EventType.JOB_RESUMED: WebhookEvent.RESUMED,
    EventType.JOB_SUCCEEDED: WebhookEvent.SUCCEEDED,
    EventType.JOB_FAILED: WebhookEvent.FAILED,
    EventType.JOB_CANCELLED: WebhookEvent.CANCELLED,
}
