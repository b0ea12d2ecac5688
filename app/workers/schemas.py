"""Workers and queues as the API shows them."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from app.jobs.states import Resource, Stage


class CurrentStage(BaseModel):
    name: Stage
    attempt: int
    job_id: str | None
    file_id: str | None
    started_at: datetime | None


class Worker(BaseModel):
    id: str
    object: Literal["worker"] = "worker"
    host: str
    pid: int
    alive: bool
    """It has given a sign of life within a lease."""
    queues: list[str]
    device: dict[str, Any] | None
    """`name`, `total_bytes`, `capability`; null where there is none or nobody has looked yet."""
    versions: dict[str, str]
    stage: CurrentStage | None
    started_at: datetime
    heartbeat_at: datetime


class Queue(BaseModel):
    object: Literal["queue"] = "queue"
    resource: Resource
    queued: int
    running: int
    workers: int
    """Those alive."""
    oldest_created_at: datetime | None
    """When what waits longest was queued."""
