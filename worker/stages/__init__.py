"""The contract between the supervisor and a stage: an attempt directory, and one function per stage.

    jobs/<job id>/<stage>/<attempt>/
        input.json      written by the supervisor before the start: {"stage", "spec", "inputs"}
        events.jsonl    appended by the stage: one report a line, {"kind", "time", ...}
        result.json     written once, at the end, by rename: {"status": succeeded, stopped or failed, "values", "files",
                        "error": {"code", "message", "hint", "param", "patch"}, "peak_host_bytes", "peak_device_bytes"};
                        `files` and `values` of a failed stage are what it made all the same
        log.txt         everything the process printed
        out/            the stage's outputs; the only folder it writes to

`python -m worker.stages DIR` runs one. Secrets arrive as one JSON object on stdin, never in a file.
Every stage module has `run(spec: JobSpec, inputs: Inputs, out: Path, report: Report) -> Outcome`.

Kinds of report, and what the supervisor does with them:
    progress    any of the contract's `progress` fields, or `message`: the job's progress
    metrics     points=[{step, time, loss, learning_rate, grad_norm, tokens_per_second, reserved_bytes, eval_loss}],
                and what the method adds: {reward_chosen, reward_rejected, reward_margin, reward_accuracy} for dpo
    data        the contract's `data` counts
    memory      the contract's `memory` object
    summary     train_loss, eval_loss, eval_loss_base, and what the method adds: the job's `metrics`
    resolved    spec={...}: a patch of the spec, for what was `auto`
    checkpoint  step, bytes, metrics: a checkpoint is complete on disk
    warning     code, message, and facts of its own for programs: an event of the job
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from app.jobs.states import FailureCode, Stage
from worker.stages.masks import Mask

STAGES: dict[Stage, str] = {
    Stage.INSPECT: "worker.stages.inspect",
    Stage.MEASURE: "worker.stages.measure",
    Stage.PREVIEW: "worker.stages.preview",
    Stage.PREPARE: "worker.stages.prepare",
    Stage.TRAIN: "worker.stages.train",
    Stage.MERGE: "worker.stages.merge",
    Stage.CONVERT: "worker.stages.convert",
    Stage.VERIFY: "worker.stages.verify",
    Stage.PUBLISH: "worker.stages.publish",
}

DISK_FULL_STATUS = 28
"""The exit status of a process that could not write its result for want of room, as the error number ENOSPC."""


class StageFailure(Exception):
    """A stage ends by raising this when the user can do something about it; anything else is `internal`.

    `hint` says what to do, `param` names the spec's field at fault, `patch` is the JSON that would make a retry succeed,
    `outcome` is what the stage has made or found all the same.
    """

    def __init__(
        self,
        code: FailureCode,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        patch: dict | None = None,
        outcome: "Outcome | None" = None,
    ):
        super().__init__(message)
        self.code, self.message, self.hint, self.param, self.patch = code, message, hint, param, patch
        self.outcome = outcome


class StageStopped(BaseException):
    """The supervisor asked the stage to leave (SIGTERM). A later attempt goes on where this one stopped."""


@dataclass(frozen=True)
class StoredFile:
    """An artifact of the job: `path` is its content in storage, where it has another name."""

    name: str
    kind: str
    path: Path
    bytes: int
    sha256: str
    verification: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a stage may read. Folders of other stages are the `out/` of their succeeded attempt."""

    cache_dir: Path
    """Downloaded and built-in base models, shared by all jobs of this user."""
    models_dir: Path | None
    """Folders that the operator offers as base models by name."""
    converter_dir: Path
    """Where llama.cpp's converter was installed, a folder of its own."""
    title: str
    """The job's name, or its id: what the exported model is called."""
    file: Path | None = None
    """The uploaded data set."""
    filename: str | None = None
    """Its name as uploaded: the ending tells its container format."""
    validation_file: Path | None = None
    """The uploaded rows that are held out, if the spec names a file of them."""
    validation_filename: str | None = None
    row: int | None = None
    """Which row of the file to preview, from 0."""
    folders: dict[str, Path] = field(default_factory=dict)
    """By stage name."""
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By stage name: the `values` that the stage returned."""
    earlier: list[Path] = field(default_factory=list)
    """The `out/` of this stage's earlier attempts, newest first. Read only."""
    adapter: Path | None = None
    """The folder of the adapter that training starts from, or of the checkpoint that `prepare` takes one from, if the spec
    names one."""
    most_kl: dict[str, float] = field(default_factory=dict)
    """By quantization: what a file may differ from the merged model, in nats per token."""
    artifacts: list[StoredFile] = field(default_factory=list)
    """Of the stage `publish`: what the stages before have made."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Of the stage `publish`: the job's `metrics`."""
    device_memory_bytes: int | None = None
    """A cap on the accelerator's memory."""
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    def secret(self, reference: str | None) -> str | None:
        """The value of a secret that a spec names as `secret:NAME`; None for None, or if it was not handed over."""
        return self.secrets.get(reference.removeprefix("secret:")) if reference else None

    def to_json(self) -> dict[str, Any]:
        """Everything but the secrets."""
        plain = {key: value for key, value in asdict(self).items() if key != "secrets"}
        return json.loads(json.dumps(plain, default=str))

    @classmethod
    def from_json(cls, data: dict[str, Any], secrets: dict[str, str]) -> "Inputs":
        def path(value: str | None) -> Path | None:
            return None if value is None else Path(value)

        return cls(
            **data
            | {
                "cache_dir": Path(data["cache_dir"]),
                "models_dir": path(data["models_dir"]),
                "converter_dir": Path(data["converter_dir"]),
                "file": path(data["file"]),
                "validation_file": path(data["validation_file"]),
                "adapter": path(data["adapter"]),
                "artifacts": [StoredFile(**file | {"path": Path(file["path"])}) for file in data["artifacts"]],
                "folders": {stage: Path(folder) for stage, folder in data["folders"].items()},
                "earlier": [Path(folder) for folder in data["earlier"]],
                "secrets": secrets,
            }
        )


@dataclass(frozen=True)
class OutputFile:
    """A file that becomes an artifact. `path` is relative to `out/`, `name` is what the user downloads."""

    name: str
    kind: str
    path: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, out: Path, path: Path, *, name: str, kind: str) -> "OutputFile":
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(name, kind, str(path.relative_to(out)), path.stat().st_size, digest)


@dataclass(frozen=True)
class Outcome:
    """`values` are small facts for later stages and for the report; `files` are published as artifacts."""

    values: dict[str, Any] = field(default_factory=dict)
    files: list[OutputFile] = field(default_factory=list)


class Report:
    """Appends reports to `events.jsonl`, without secrets; carries the request to stop."""

    def __init__(self, path: Path, mask: Mask | None = None):
        self._file = path.open("a", encoding="utf-8")
        self._mask = mask or Mask()
        self._holding = False
        self.stop_requested = False

    def __call__(self, kind: str, **data: Any) -> None:
        self._file.write(json.dumps({"kind": kind, "time": time.time(), **self._mask(data)}) + "\n")
        self._file.flush()

    def request_stop(self) -> None:
        """Called by the signal handler: stops the stage at once, unless it holds the stop back."""
        self.stop_requested = True
        if not self._holding:
            raise StageStopped

    @contextmanager
    def holding_stop(self) -> Iterator[None]:
        """Inside, a stop only sets `stop_requested`; the stage finishes its step, saves and raises StageStopped itself."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
