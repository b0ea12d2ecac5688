"""OpenAI's objects as this service answers them. Times are unix seconds."""

from typing import Any, Literal

from pydantic import BaseModel


class JobError(BaseModel):
    code: str
    message: str
    param: str | None


class ResolvedHyperparameters(BaseModel):
    """`auto` stands until the data has been counted."""

    n_epochs: int | Literal["auto"]
    batch_size: int | Literal["auto"]
    learning_rate_multiplier: float


class ResolvedDpoHyperparameters(ResolvedHyperparameters):
    beta: float


class SupervisedMethod(BaseModel):
    type: Literal["supervised"] = "supervised"
    supervised: dict[Literal["hyperparameters"], ResolvedHyperparameters]


class DpoMethod(BaseModel):
    type: Literal["dpo"] = "dpo"
    dpo: dict[Literal["hyperparameters"], ResolvedDpoHyperparameters]


class FineTuningJob(BaseModel):
    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    model: str
    fine_tuned_model: str | None
    """Its name in GET /v1/models; null until the job has succeeded."""
    organization_id: str
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    hyperparameters: ResolvedHyperparameters
    method: SupervisedMethod | DpoMethod
    training_file: str
    """The file's id, or the hub's name of the data set."""
    validation_file: str | None
    result_files: list[str]
    """A CSV of the metrics, once the job has succeeded."""
    trained_tokens: int | None
    error: JobError | None
    seed: int
    integrations: list[dict[str, Any]]
    metadata: dict[str, str] | None


class FineTuningEvent(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]
    """The data of the native event and its type, as `event`; of a checkpoint also its metrics under OpenAI's names."""


class CheckpointMetrics(BaseModel):
    step: int | None = None
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class FineTuningCheckpoint(BaseModel):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    """`tunesmith`, `operator`, or the tenant whose job made it."""


class DeletedModel(BaseModel):
    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True
