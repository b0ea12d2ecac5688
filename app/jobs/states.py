"""The vocabulary of a job's life: statuses, stages, events, failure codes, and which status may follow which.

docs/states.md draws the map of the statuses; a test writes it from here.
"""

from enum import StrEnum


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class Stage(StrEnum):
    """`inspect` reads an uploaded file, `measure` and `preview` show what a tokenizer makes of it; the others are the stages of
    a job, in their order."""

    INSPECT = "inspect"
    MEASURE = "measure"
    PREVIEW = "preview"
    PREPARE = "prepare"
    TRAIN = "train"
    MERGE = "merge"
    CONVERT = "convert"
    VERIFY = "verify"
    PUBLISH = "publish"

    @property
    def resource(self) -> "Resource":
        return Resource.GPU if self is Stage.TRAIN else Resource.CPU


HELD = (Stage.MERGE, Stage.CONVERT)
"""The stages whose files are offered only once the stage `verify`, where a job has it, has found them right."""


class Resource(StrEnum):
    GPU = "gpu"
    CPU = "cpu"


class StageStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class EventType(StrEnum):
    JOB_QUEUED = "job.queued"
    JOB_STARTED = "job.started"
    STAGE_STARTED = "stage.started"
    STAGE_FINISHED = "stage.finished"
    STAGE_FAILED = "stage.failed"
    JOB_CHECKPOINT = "job.checkpoint"
    JOB_ARTIFACT = "job.artifact"
    JOB_WARNING = "job.warning"
    JOB_PAUSED = "job.paused"
    JOB_RESUMED = "job.resumed"
    JOB_RETRYING = "job.retrying"
    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"


TRANSITIONS: dict[JobStatus, dict[JobStatus, EventType]] = {
    JobStatus.QUEUED: {
        JobStatus.RUNNING: EventType.JOB_STARTED,
        JobStatus.PAUSED: EventType.JOB_PAUSED,
        JobStatus.FAILED: EventType.JOB_FAILED,
        JobStatus.CANCELLED: EventType.JOB_CANCELLED,
    },
    JobStatus.RUNNING: {
        JobStatus.PAUSED: EventType.JOB_PAUSED,
        JobStatus.SUCCEEDED: EventType.JOB_SUCCEEDED,
        JobStatus.FAILED: EventType.JOB_FAILED,
        JobStatus.CANCELLED: EventType.JOB_CANCELLED,
    },
    JobStatus.PAUSED: {JobStatus.QUEUED: EventType.JOB_RESUMED, JobStatus.CANCELLED: EventType.JOB_CANCELLED},
    JobStatus.SUCCEEDED: {},
    JobStatus.FAILED: {JobStatus.QUEUED: EventType.JOB_RETRYING},
    JobStatus.CANCELLED: {JobStatus.QUEUED: EventType.JOB_RETRYING},
}
"""From each status to those that may follow, with the event that the step writes. Nobody but the user leaves an end."""


class FailureCode(StrEnum):
    INVALID_SPEC = "invalid_spec"
    NOT_AVAILABLE = "not_available"
    DATASET_NOT_FOUND = "dataset_not_found"
    DATASET_INVALID = "dataset_invalid"
    DATASET_EMPTY = "dataset_empty"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_GATED = "model_gated"
    MODEL_UNSUPPORTED = "model_unsupported"
    OUT_OF_MEMORY = "out_of_memory"
    NAN_LOSS = "nan_loss"
    DISK_FULL = "disk_full"
    TIMEOUT = "timeout"
    WORKER_LOST = "worker_lost"
    CONVERSION_FAILED = "conversion_failed"
    VERIFICATION_FAILED = "verification_failed"
    HUB_UNAUTHORIZED = "hub_unauthorized"
    HUB_UNAVAILABLE = "hub_unavailable"
    INTERNAL = "internal"
