"""Every table. Enums are stored as text, times as UTC, and whatever has a shape of its own as JSON.

Files and artifacts name a blob by its hash, never a path. Stage runs are attempts: a retry is a new row.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, DateTime, ForeignKey, Index, String, Text, TypeDecorator, UniqueConstraint
from sqlmodel import Field, SQLModel

from app.ids import new_id
from app.jobs.states import EventType, JobStatus, Resource, Stage, StageStatus
from app.tenancy import DEFAULT_TENANT

SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def now() -> datetime:
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """Stores UTC and gives back aware datetimes, also on SQLite, which keeps no time zone."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value.replace(tzinfo=UTC) if value else None


class EnumText(TypeDecorator[StrEnum]):
    """Stores an enum's value as text: a new member needs no migration."""

    impl = String
    cache_ok = True

    def __init__(self, enum: type[StrEnum]):
        super().__init__(32)
        self.enum = enum

    def process_bind_param(self, value: StrEnum | None, dialect: Any) -> str | None:
        return None if value is None else self.enum(value).value

    def process_result_value(self, value: str | None, dialect: Any) -> StrEnum | None:
        return None if value is None else self.enum(value)


def json_column(*, nullable: bool = False) -> Any:
    return Column(JSON(none_as_null=True), nullable=nullable)


def owned_by(table: str, *, nullable: bool = False, index: bool = True) -> Any:
    return Column(ForeignKey(f"{table}.id", ondelete="CASCADE"), nullable=nullable, index=index)


class Job(SQLModel, table=True):
    __table_args__ = (Index(None, "tenant_id", "status"),)

    id: str = Field(primary_key=True, default_factory=lambda: new_id("job_"))
    tenant_id: str = Field(default=DEFAULT_TENANT, index=True)
    name: str | None = None
    base_model: str = Field(index=True)
    status: JobStatus = Field(default=JobStatus.QUEUED, sa_type=EnumText(JobStatus), index=True)
    stage: Stage | None = Field(default=None, sa_type=EnumText(Stage))
    priority: int = 0
    spec: dict[str, Any] = Field(sa_column=json_column())
    spec_version: int
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    queued_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    """When its user last put it into the queue: submitted, resumed or retried it."""
    cancel_requested_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    pause_requested_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    event_count: int = 0
    request_id: str | None = None
    """Of the request that put it into the queue last."""
    progress: dict[str, Any] | None = Field(default=None, sa_column=json_column(nullable=True))
    data: dict[str, Any] | None = Field(default=None, sa_column=json_column(nullable=True))
    metrics: dict[str, Any] | None = Field(default=None, sa_column=json_column(nullable=True))
    memory: dict[str, Any] | None = Field(default=None, sa_column=json_column(nullable=True))
    error: dict[str, Any] | None = Field(default=None, sa_column=json_column(nullable=True))


class JobLabel(SQLModel, table=True):
    __tablename__ = "job_label"
    __table_args__ = (Index(None, "key", "value"),)

    job_id: str = Field(sa_column=Column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True))
    key: str = Field(primary_key=True)
    value: str


class File(SQLModel, table=True):
    id: str = Field(primary_key=True, default_factory=lambda: new_id("file-"))
    tenant_id: str = Field(default=DEFAULT_TENANT, index=True)
    filename: str
    purpose: str
    blob_sha256: str = Field(sa_column=Column(ForeignKey("blob.sha256"), nullable=False, index=True))
    job_id: str | None = Field(default=None, sa_column=owned_by("job", nullable=True))
    """The job whose result it is; null for an upload."""
    status: str = "uploaded"
    """`uploaded`, then `processed` or `error` when a cpu worker has read it."""
    status_details: str | None = None
    report: dict[str, Any] | None = Field(default=None, sa_column=json_column(nullable=True))
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class Blob(SQLModel, table=True):
    """Content in storage. It goes when no file and no artifact names it."""

    sha256: str = Field(primary_key=True)
    bytes: int = Field(sa_type=BigInteger)
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class StageRun(SQLModel, table=True):
    """One attempt at a stage of a job, or at the inspection of a file: the unit that a worker claims.

    Whoever holds the lease may write while `fence` is the one that its claim was given.
    """

    __tablename__ = "stage_run"
    __table_args__ = (
        UniqueConstraint("job_id", "stage", "attempt"),
        UniqueConstraint("file_id", "stage", "attempt"),
        Index(None, "status", "resource"),
    )

    id: str = Field(primary_key=True, default_factory=lambda: new_id("run_"))
    tenant_id: str = Field(default=DEFAULT_TENANT, index=True)
    job_id: str | None = Field(default=None, sa_column=owned_by("job", nullable=True))
    file_id: str | None = Field(default=None, sa_column=owned_by("file", nullable=True))
    stage: Stage = Field(sa_type=EnumText(Stage))
    attempt: int = 1
    resource: Resource = Field(sa_type=EnumText(Resource))
    status: StageStatus = Field(default=StageStatus.QUEUED, sa_type=EnumText(StageStatus))
    fence: int = 0
    lease_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    worker_id: str | None = None
    key: str | None = None
    """Hash of the stage's part of the spec, its inputs and its code version."""
    overrides: dict[str, Any] | None = Field(default=None, sa_column=json_column(nullable=True))
    """A patch of the spec for this attempt, as the OOM ladder makes it."""
    outputs: dict[str, Any] | None = Field(default=None, sa_column=json_column(nullable=True))
    error: dict[str, Any] | None = Field(default=None, sa_column=json_column(nullable=True))
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    started_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    request_id: str | None = None
    """Of the request that queued it, or that put its job into the queue."""
    peak_host_bytes: int | None = Field(default=None, sa_type=BigInteger)
    peak_device_bytes: int | None = Field(default=None, sa_type=BigInteger)


class Event(SQLModel, table=True):
    __table_args__ = (UniqueConstraint("job_id", "number"),)

    id: str = Field(primary_key=True, default_factory=lambda: new_id("evt_"))
    tenant_id: str = Field(default=DEFAULT_TENANT, index=True)
    job_id: str = Field(sa_column=owned_by("job", index=False))
    number: int
    """1, 2, 3 … within the job."""
    type: EventType = Field(sa_type=EnumText(EventType))
    message: str
    data: dict[str, Any] = Field(default_factory=dict, sa_column=json_column())
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class MetricChunk(SQLModel, table=True):
    """About a second of metric points. Where chunks overlap after a resume, the later one is right."""

    __tablename__ = "metric_chunk"

    id: int | None = Field(default=None, primary_key=True)
    job_id: str = Field(sa_column=owned_by("job"))
    stage_run_id: str = Field(sa_column=owned_by("stage_run"))
    points: list[dict[str, Any]] = Field(sa_column=json_column())


class Checkpoint(SQLModel, table=True):
    __table_args__ = (UniqueConstraint("stage_run_id", "step"),)

    id: str = Field(primary_key=True, default_factory=lambda: new_id("ckpt_"))
    tenant_id: str = Field(default=DEFAULT_TENANT, index=True)
    job_id: str = Field(sa_column=owned_by("job"))
    stage_run_id: str = Field(sa_column=owned_by("stage_run", index=False))
    step: int
    bytes: int = Field(sa_type=BigInteger)
    metrics: dict[str, Any] = Field(default_factory=dict, sa_column=json_column())
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class Artifact(SQLModel, table=True):
    __table_args__ = (UniqueConstraint("job_id", "name"),)

    id: str = Field(primary_key=True, default_factory=lambda: new_id("art_"))
    tenant_id: str = Field(default=DEFAULT_TENANT, index=True)
    job_id: str = Field(sa_column=owned_by("job", index=False))
    name: str
    kind: str
    blob_sha256: str = Field(sa_column=Column(ForeignKey("blob.sha256"), nullable=False, index=True))
    verification: dict[str, Any] | None = Field(default=None, sa_column=json_column(nullable=True))
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class WebhookEndpoint(SQLModel, table=True):
    """A URL that is told of what happens to its tenant's jobs."""

    __tablename__ = "webhook_endpoint"

    id: str = Field(primary_key=True, default_factory=lambda: new_id("wh_"))
    tenant_id: str = Field(default=DEFAULT_TENANT, index=True)
    name: str
    url: str
    event_types: list[str] = Field(sa_column=json_column())
    encrypted_secret: str = Field(sa_type=Text, repr=False)
    secret_hint: str
    old_encrypted_secret: str | None = Field(default=None, sa_type=Text, repr=False)
    """Signs too, until `old_secret_until`."""
    old_secret_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    disabled_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    disabled_reason: str | None = None
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    updated_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class WebhookDelivery(SQLModel, table=True):
    """The outbox: written in the transaction of the transition that it tells of, sent later by the notify worker.

    Outlives its job: who deletes a job that has just ended is told of its end all the same.
    """

    __tablename__ = "webhook_delivery"

    id: str = Field(primary_key=True, default_factory=lambda: new_id("dlv_"))
    tenant_id: str = Field(default=DEFAULT_TENANT, index=True)
    job_id: str | None = Field(
        default=None, sa_column=Column(ForeignKey("job.id", ondelete="SET NULL"), nullable=True, index=True)
    )
    endpoint_id: str | None = Field(default=None, sa_column=owned_by("webhook_endpoint", nullable=True))
    """Null for the URL that a job brought; then `secret_name` says what it is signed with."""
    secret_name: str | None = None
    event_id: str
    event_type: str
    url: str
    host: str
    """Of the URL: few deliveries at a time go to one."""
    body: dict[str, Any] = Field(sa_column=json_column())
    status: str = "pending"
    """`pending`, then `delivered` or `failed`."""
    attempts: list[dict[str, Any]] = Field(default_factory=list, sa_column=json_column())
    tries: int = 0
    """Since it was last queued."""
    due_at: datetime | None = Field(default=None, sa_type=UtcDateTime, index=True)
    fence: int = 0
    lease_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class Secret(SQLModel, table=True):
    """A token or key that specs name as `secret:NAME`."""

    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    id: str = Field(primary_key=True, default_factory=lambda: new_id("sec_"))
    tenant_id: str = DEFAULT_TENANT
    name: str
    encrypted: str = Field(sa_type=Text, repr=False)
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    updated_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class ApiKey(SQLModel, table=True):
    """Whoever has the key acts for the tenant. Only its hash is stored."""

    __tablename__ = "api_key"
    __table_args__ = (UniqueConstraint("sha256"),)

    id: str = Field(primary_key=True, default_factory=lambda: new_id("key_"))
    tenant_id: str = DEFAULT_TENANT
    name: str | None = None
    sha256: str = Field(repr=False)
    hint: str
    scopes: list[str] = Field(sa_column=json_column())
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    expires_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    last_used_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class IdempotentRequest(SQLModel, table=True):
    """A request that named itself by an `Idempotency-Key`, and what it made."""

    __tablename__ = "idempotent_request"

    tenant_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    digest: str
    """SHA-256 of the operation and the body."""
    resource_id: str
    created_at: datetime = Field(default_factory=now, sa_type=UtcDateTime, index=True)


class Worker(SQLModel, table=True):
    """A worker process, alive while its heartbeat is fresh."""

    id: str = Field(primary_key=True, default_factory=lambda: new_id("wrk_"))
    host: str
    pid: int
    queues: list[str] = Field(sa_column=json_column())
    device: dict[str, Any] | None = Field(default=None, sa_column=json_column(nullable=True))
    """`name`, `total_bytes`, `capability`; null until the worker has looked, or when it has no use for one."""
    versions: dict[str, str] = Field(default_factory=dict, sa_column=json_column())
    stage_run_id: str | None = None
    started_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)
    heartbeat_at: datetime = Field(default_factory=now, sa_type=UtcDateTime)


class Leader(SQLModel, table=True):
    """Who runs a loop that must run once, by the loop's name."""

    name: str = Field(primary_key=True)
    owner: str
    lease_until: datetime = Field(sa_type=UtcDateTime)
