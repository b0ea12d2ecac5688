"""Jobs and what belongs to them, as the API shows them. A value that is not known is null."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from app.artifacts.schemas import Artifact
from app.jobs.states import EventType, JobStatus, Stage, StageStatus


class Measured(BaseModel):
    """What stages report: the fields of the contract, null until they are known, and whatever they add."""

    model_config = ConfigDict(extra="allow")


class Progress(Measured):
    step: int | None = None
    total_steps: int | None = None
    percent: float | None = None
    eta_seconds: float | None = None
    epoch: float | None = None
    tokens_seen: int | None = None
    trained_tokens: int | None = None
    tokens_per_second: float | None = None


class Data(Measured):
    rows: int | None = None
    rows_refused: int | None = None
    tokens: int | None = None
    trained_tokens: int | None = None
    rows_cut: int | None = None
    packed_rows: int | None = None


class Summary(Measured):
    train_loss: float | None = None
    eval_loss: float | None = None
    eval_loss_base: float | None = None
    eval_perplexity: float | None = None
    eval_perplexity_base: float | None = None
    eval_accuracy: float | None = None
    eval_accuracy_base: float | None = None
    eval_stop_probability: float | None = None
    eval_stop_probability_base: float | None = None


class Memory(Measured):
    device: str | None = None
    device_total_bytes: int | None = None
    start_reserved_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    training_reserved_bytes: int | None = None
    peak_percent: float | None = None
    training_percent: float | None = None


class StageAttempt(BaseModel):
    """`queued` stands also for a stage whose turn has not come; it has no attempt yet."""

    name: Stage
    status: StageStatus
    attempt: int | None = None
    worker: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    duration_seconds: float | None = None
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None
    error: dict[str, Any] | None = None


class Job(BaseModel):
    id: str
    object: Literal["job"] = "job"
    name: str | None
    status: JobStatus
    stage: Stage | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    pause_requested_at: datetime | None
    queue_position: int | None
    attempts: int
    progress: Progress
    data: Data
    metrics: Summary
    memory: Memory
    stages: list[StageAttempt]
    error: dict[str, Any] | None
    spec: dict[str, Any]
    labels: dict[str, str]
    artifacts: list[Artifact]


class DeletedJob(BaseModel):
    id: str
    object: Literal["job"] = "job"
    deleted: Literal[True] = True


class Event(BaseModel):
    id: str
    object: Literal["event"] = "event"
    job_id: str
    type: EventType
    message: str
    data: dict[str, Any]
    created_at: datetime


class StageProgress(BaseModel):
    """On the stream only, between the events."""

    object: Literal["stage.progress"] = "stage.progress"
    job_id: str
    stage: Stage | None
    progress: Progress


class MetricPoint(Measured):
    """One optimizer step."""

    step: int
    time: float | None = None
    loss: float | None = None
    eval_loss: float | None = None
    eval_perplexity: float | None = None
    eval_accuracy: float | None = None
    eval_stop_probability: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    reserved_bytes: int | None = None


class Checkpoint(BaseModel):
    id: str
    object: Literal["checkpoint"] = "checkpoint"
    step: int
    attempt: int
    created_at: datetime
    metrics: dict[str, Any]
    bytes: int
    resumable: bool
    """Its files are still there; older ones are removed as checkpoints.keep says."""
