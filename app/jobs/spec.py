"""What a user asks for. The defaults here are the contract's; `resolve` settles what can be settled before a job starts.

An `auto` that depends on the device or on the data is settled by the stage that knows it, which reports it as `resolved`.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from app.jobs.states import Stage
from app.webhooks.events import DEFAULT_EVENTS, WebhookEvent

SPEC_VERSION = 1
BUILT_IN_MODEL = "smollm2-135m-instruct"
MAX_ACCUMULATION = 4096

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Word = Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""A pattern also keeps out halves of surrogate pairs, which neither the database nor an answer can hold."""
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
LabelValue = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
ModuleName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
SECRET_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"  # noqa: S105 — of names
SECRET_PREFIX = "secret:"  # noqa: S105 — of a name
WEBHOOK_SECRET = "webhook.secret"  # noqa: S105 — a field's path
"""Whose secret no stage is given."""


def check_reference(text: str) -> str:
    """ValueError, without the text, for anything but `secret:NAME`: it may be the token itself."""
    if not re.fullmatch(SECRET_PREFIX + SECRET_NAME, text):
        raise ValueError(
            'name a stored secret here, as in "secret:hf", never the value itself; PUT /v1/secrets/hf or '
            "`tunesmith secrets set hf` stores one"
        )
    return text


SecretReference = Annotated[
    str, AfterValidator(check_reference), Field(json_schema_extra={"pattern": f"^{SECRET_PREFIX}{SECRET_NAME}$"})
]


def check_repository(name: str) -> str:
    """ValueError unless the hub would take it as a new repository's name."""
    part = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
    if not re.fullmatch(f"{part}/{part}", name) or "--" in name or ".." in name or name.endswith(".git"):
        raise ValueError(
            "give a repository as owner/name: letters, digits, and single '-' or '.' or '_' between them; no '.git' at the end"
        )
    return name


class SpecModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False, hide_input_in_errors=True)


class HubDataset(SpecModel):
    repo: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$", max_length=200)]
    config: Word | None = None
    split: Word = "train"
    revision: Word | None = None


class Dataset(SpecModel):
    file: Word | None = None
    hub: HubDataset | None = None
    format: Literal[
        "auto", "sharegpt", "messages", "alpaca", "prompt_completion", "instruction_response", "text", "preference"
    ] = "auto"
    max_samples: Annotated[int, Field(ge=1)] | None = None
    seed: Seed = 3407
    validation_fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    validation_file: Word | None = None
    max_refused: Annotated[int, Field(ge=0)] = 0
    long_rows: Literal["split", "cut", "drop"] = "split"

    @model_validator(mode="after")
    def _has_one_source(self) -> "Dataset":
        if (self.file is None) == (self.hub is None):
            raise ValueError("give exactly one of dataset.file (an uploaded file's id) and dataset.hub")
        return self


class Lora(SpecModel):
    r: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    target_modules: Literal["all-linear"] | Annotated[list[ModuleName], Field(min_length=1, max_length=1000)] = "all-linear"
    variant: Literal["lora", "rslora", "dora"] = "lora"
    modules_to_save: Annotated[list[ModuleName], Field(max_length=1000)] = []


class Training(SpecModel):
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 2
    gradient_accumulation: Annotated[int, Field(ge=1, le=MAX_ACCUMULATION)] = 4
    learning_rate: Annotated[float, Field(gt=0, le=1.0)] = 2e-4
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    weight_decay: Annotated[float, Field(ge=0, le=1.0)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    optimizer: Literal["auto", "adamw", "adamw_8bit"] = "auto"
    max_seq_length: Annotated[int, Field(ge=16, le=1_048_576)] = 2048
    packing: bool = True
    assistant_only_loss: bool = True
    seed: Seed = 3407
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    memory: Literal["auto", "speed", "balanced", "low"] = "auto"
    """`speed` keeps every activation, `balanced` recomputes each layer in the backward pass."""
    engine: Literal["auto", "trl"] = "auto"
    oom_ladder: bool = True

    @model_validator(mode="after")
    def _has_one_length(self) -> "Training":
        if self.max_steps is not None and self.epochs is not None:
            raise ValueError("give max_steps or epochs, not both")
        return self


class Preference(SpecModel):
    beta: Annotated[float, Field(gt=0)] = 0.1


class Checkpoints(SpecModel):
    every_steps: Annotated[int, Field(ge=1)] | None = None
    keep: Annotated[int, Field(ge=1, le=1000)] = 2


class Evaluation(SpecModel):
    """`samples` held-out prompts are answered before and after training; without validation rows there is nothing to ask."""

    every_steps: Annotated[int, Field(ge=1)] | None = None
    samples: Annotated[int, Field(ge=0, le=1000)] = 4


class EarlyStopping(SpecModel):
    """Ends training after `patience` measurements in a row that found the held-out loss no lower than the lowest less
    `min_delta`. The adapter of the lowest one is what the job makes."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    min_delta: Annotated[float, Field(ge=0.0)] = 0.0


class JobWebhook(SpecModel):
    """A URL that is told of this job, beside the endpoints of its tenant. `secret` names the key that its messages are signed
    with, `whsec_` and 24 to 64 bytes in base64."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    event_types: Annotated[list[WebhookEvent], Field(min_length=1, max_length=len(WebhookEvent))] = list(DEFAULT_EVENTS)
    secret: SecretReference


class AdapterExport(SpecModel):
    kind: Literal["adapter"] = "adapter"


class MergedExport(SpecModel):
    kind: Literal["merged"] = "merged"


class GgufExport(SpecModel):
    kind: Literal["gguf"] = "gguf"
    quantization: Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"] = "q8_0"


class LoraGgufExport(SpecModel):
    """The adapter alone, for a llama.cpp that has the base model already."""

    kind: Literal["lora_gguf"] = "lora_gguf"
    type: Literal["f32", "f16", "bf16"] = "f16"


Export = Annotated[AdapterExport | MergedExport | GgufExport | LoraGgufExport, Field(discriminator="kind")]


class Publication(SpecModel):
    """A model repository of the hub, `owner/name`, and the kinds of exports that it is to hold."""

    repo: Annotated[str, StringConstraints(max_length=96), AfterValidator(check_repository)]
    private: bool = True
    artifacts: Annotated[list[Literal["adapter", "merged", "gguf", "lora_gguf"]], Field(min_length=1, max_length=4)]
    token: SecretReference


class JobSpec(SpecModel):
    base_model: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,200}$")] | None = None
    hub_token: SecretReference | None = None
    dataset: Dataset
    name: Name | None = None
    purpose: Annotated[str, StringConstraints(max_length=4000, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*$")] | None = None
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=64)] = {}
    method: Literal["sft", "cpt", "dpo"] = "sft"
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    lora: Lora = Lora()
    training: Training = Training()
    preference: Preference = Preference()
    early_stopping: EarlyStopping | None = None
    checkpoints: Checkpoints = Checkpoints()
    evaluation: Evaluation = Evaluation()
    exports: Annotated[list[Export], Field(min_length=1, max_length=16)] = [AdapterExport(), MergedExport(), GgufExport()]
    publish: Annotated[list[Publication], Field(max_length=16)] = []
    webhook: JobWebhook | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    preemptible: bool = False
    gpus: Annotated[int, Field(ge=1, le=64)] = 1
    max_runtime_seconds: Annotated[int, Field(ge=1)] | None = None
    from_job: Word | None = None
    from_checkpoint: Word | None = None

    def secrets(self) -> dict[str, str]:
        """The name of each secret that this spec needs, by the field that names it."""
        named = {"hub_token": self.hub_token, WEBHOOK_SECRET: self.webhook and self.webhook.secret}
        named |= {f"publish[{place}].token": publication.token for place, publication in enumerate(self.publish)}
        return {param: reference.removeprefix(SECRET_PREFIX) for param, reference in named.items() if reference}

    def exports_of(self, kind: str) -> list[Export]:
        return [export for export in self.exports if export.kind == kind]


def plan(spec: dict[str, Any]) -> list[Stage]:
    """The stages that a JobSpec in its JSON form needs, in order."""
    kinds = {export["kind"] for export in spec["exports"]}
    stages = [Stage.PREPARE] if spec["from_checkpoint"] else [Stage.PREPARE, Stage.TRAIN]
    if "merged" in kinds:
        stages.append(Stage.MERGE)
    if kinds & {"gguf", "lora_gguf"}:
        stages += [Stage.CONVERT, Stage.VERIFY]
    if spec["publish"]:
        stages.append(Stage.PUBLISH)
    return stages


def count_steps(rows: int, training: Training) -> int:
    """Optimizer steps for `rows` packed rows: `max_steps`, or `epochs` (1 when neither is given) rounded up to whole steps."""
    if training.max_steps is not None:
        return training.max_steps
    per_step = training.batch_size * training.gradient_accumulation
    return max(1, -(-int(rows * (training.epochs or 1.0)) // per_step))


def count_warmup(total_steps: int, training: Training) -> int:
    """Warm-up is at most a tenth of the steps, so that a short job learns at all."""
    return min(training.warmup_steps, total_steps // 10)


def merged(spec: dict, patch: dict) -> dict:
    """`patch` laid over `spec`, object by object; the inputs stay as they are."""
    result = dict(spec)
    for key, value in patch.items():
        nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if nested else value
    return result
