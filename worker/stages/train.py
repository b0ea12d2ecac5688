"""Trains an adapter on the packed plan: on the GPU if there is one, from the last whole checkpoint if there is one."""

import importlib
import json
from itertools import islice
from pathlib import Path
from typing import Any

from app.jobs.spec import JobSpec, count_steps, count_warmup, merged
from app.jobs.states import FailureCode, Stage
from worker.data import base_models
from worker.data.base_models import BaseModel
from worker.data.plan import Plan
from worker.data.tokenizer import read_json
from worker.exports import adapter_files, tokenizer_files
from worker.stages import Inputs, Outcome, Report, StageFailure
from worker.training import ATTENTION, ENGINES, Run, Trained, checkpoints
from worker.training.device import Device, open_device
from worker.training.lock import PACKAGES, hash_json, make_lock
from worker.training.precision import choose


def run(spec: JobSpec, inputs: Inputs, out: Path, report: Report) -> Outcome:
    """StageFailure invalid_spec, not_available, dataset_empty, model_*, hub_*, out_of_memory, nan_loss; StageStopped."""
    plan = open_plan(inputs)
    device = open_device(inputs.device_memory_bytes)
    places: dict[str, Any] = {"cache_dir": inputs.cache_dir, "models_dir": inputs.models_dir}
    revision = inputs.values[Stage.PREPARE]["base_model"]["revision"]
    base = base_models.fetch(spec.base_model, revision, **places, token=inputs.secret(spec.hub_token), report=report)
    settled, warning = settle(spec, device, base.path)
    report("resolved", spec={"training": settled.training.model_dump(include={"precision", "memory", "optimizer", "engine"})})
    if warning:
        report("warning", code="precision", message=warning)
    ready = make_run(settled, inputs, device, base, plan, out, report)
    report("progress", message="Loading the libraries")
    trained: Trained = importlib.import_module(ENGINES[settled.training.engine]).train(ready)
    report("summary", **summarise(trained))
    tokenizer = tokenizer_files.export(base.path, inputs.folders[Stage.PREPARE], out)
    return Outcome(values_of(ready, trained), [*adapter_files.list_files(spec, out), *tokenizer])


def open_plan(inputs: Inputs) -> Plan:
    plan = Plan.open(inputs.folders[Stage.PREPARE] / "plan")
    if not plan.facts["trained_tokens"]:
        message = "The data set has no token to train on. Check that its conversations have answers."
        raise StageFailure(FailureCode.DATASET_EMPTY, message, param="dataset")
    return plan


def settle(spec: JobSpec, device: Device, base: Path) -> tuple[JobSpec, str | None]:
    """The spec without an `auto` in training, and what a user should know of that. `base` is the base model's folder."""
    asked = spec.training
    decision = choose(asked.precision, device.capability, read_json(base / "config.json")["model_type"])
    settled = {
        "precision": decision.precision,
        "memory": ("balanced" if device.is_cuda else "speed") if asked.memory == "auto" else asked.memory,
        "optimizer": "adamw" if asked.optimizer == "auto" else asked.optimizer,
        "engine": "trl" if asked.engine == "auto" else asked.engine,
    }
    return JobSpec.model_validate(merged(spec.model_dump(), {"training": settled})), decision.warning


def make_run(spec: JobSpec, inputs: Inputs, device: Device, base: BaseModel, plan: Plan, out: Path, report: Report) -> Run:
    total_steps = count_steps(plan.rows, spec.training)
    validation, samples = open_validation(spec, inputs)
    held_out = hash_json([validation and validation.facts["sha256"], samples])
    lock = make_lock(spec, plan, base, device, held_out=held_out, attention=ATTENTION, adapter=inputs.adapter)
    return Run(
        spec=spec,
        device=device,
        base=base.path,
        base_revision=base.revision,
        adapter=inputs.adapter,
        plan=plan,
        validation=validation,
        samples=samples,
        stop_token_ids=(inputs.values[Stage.PREPARE].get("chat_template") or {}).get("stop_token_ids", []),
        total_steps=total_steps,
        warmup_steps=count_warmup(total_steps, spec.training),
        out=out,
        held_out=held_out,
        lock=lock,
        checkpoints=checkpoints.usable(inputs.earlier, lock, report),
        report=report,
    )


def open_validation(spec: JobSpec, inputs: Inputs) -> tuple[Plan | None, list[dict[str, Any]]]:
    """The held-out rows, and as many held-out prompts as the spec asks for."""
    if not inputs.values[Stage.PREPARE].get("validation"):
        return None, []
    folder = inputs.folders[Stage.PREPARE] / "validation"
    prompts = folder / "samples.jsonl"
    if not prompts.exists():
        return Plan.open(folder), []
    with prompts.open(encoding="utf-8") as lines:
        return Plan.open(folder), [json.loads(line) for line in islice(lines, spec.evaluation.samples)]


def summarise(trained: Trained) -> dict[str, Any]:
    """The job's `metrics`: of the last step, and of the held-out rows, with `_base` as they were before training."""
    base = {f"{name}_base": value for name, value in trained.measured_base.items()}
    return (
        {"train_loss": trained.train_loss, "eval_loss": None, "eval_loss_base": None}
        | trained.last_metrics
        | base
        | trained.measured
    )


def values_of(run: Run, trained: Trained) -> dict[str, Any]:
    return {
        "adapter": "adapter",
        "train_seconds": round(trained.train_seconds, 3),
        "steps": trained.steps,
        "total_steps": run.total_steps,
        "final_loss": trained.final_loss,
        "samples": trained.samples,
        "trainable_parameters": trained.trainable_parameters,
        "precision": run.spec.training.precision,
        "attention": run.lock["attention"],
        "resumed_from_step": trained.resumed_from_step,
        "from_job": {"id": run.spec.from_job, "adapter_sha256": run.lock["from_job"]} if run.adapter else None,
        "best_step": trained.best_step,
        "stopped_early": trained.stopped_early,
        "versions": {package: run.lock[f"packages.{package}"] for package in PACKAGES},
    }
