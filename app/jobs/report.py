"""The experiment report of a job: what was asked for, what it cost, what came of it.

`build` gathers it from what the API shows of a job and from what its stages returned; `render` writes it as Markdown. Both are
pure and take a job in any status. What is not known is None in the one and a dash in the other, never 0.
"""

import math
from datetime import datetime
from typing import Any

from app.jobs.report_markdown import render
from app.jobs.spec import JobSpec, count_warmup

__all__ = ["build", "render"]

MOST_PERPLEXED = 100.0
"""A mean loss above this has no perplexity that says anything."""


def build(
    job: dict[str, Any],
    *,
    stage_values: dict[str, dict[str, Any]],
    points: list[dict[str, Any]],
    checkpoints: list[dict[str, Any]],
    events: list[dict[str, Any]],
    filename: str | None = None,
) -> dict[str, Any]:
    """The report as JSON. `job`, `points` (by step), `checkpoints` and `events` are the API's own objects in their JSON form;
    `stage_values` holds the `values` that the newest succeeded attempt of each stage returned, by stage name; `filename` is
    what the uploaded data set was called."""
    train = stage_values.get("train", {})
    return {
        "object": "report",
        "job_id": job["id"],
        "name": job["name"],
        "status": job["status"],
        "created_at": job["created_at"],
        "finished_at": job["finished_at"],
        "labels": job["labels"],
        "purpose": job["spec"]["purpose"],
        "setup": build_setup(job, stage_values.get("prepare", {}), train, filename),
        "performance": build_performance(job, train),
        "outcomes": build_outcomes(job, train, points, checkpoints, events)
        | {"published": stage_values.get("publish", {}).get("published")},
    }


def build_setup(job: dict[str, Any], prepare: dict[str, Any], train: dict[str, Any], filename: str | None) -> dict[str, Any]:
    spec, data = job["spec"], job["data"]
    training = spec["training"]
    steps = job["progress"]["total_steps"] or training["max_steps"]
    return {
        "base_model": spec["base_model"],
        "revision": prepare.get("base_model", {}).get("revision") or spec["revision"],
        "dataset": pick(spec["dataset"], "file", "hub", "format", "max_samples", "seed") | {"filename": filename},
        "samples": data["rows"],
        "samples_refused": data["rows_refused"],
        "samples_held_out": prepare.get("counts", {}).get("validation_rows"),
        "packed_rows": data["packed_rows"],
        "tokens": data["tokens"],
        "trained_tokens": data["trained_tokens"],
        "rows_cut": data["rows_cut"],
        "chat_template": prepare.get("chat_template"),
        "data_report": prepare.get("report"),
        "method": spec["method"],
        "beta": spec["preference"]["beta"] if spec["method"] == "dpo" else None,
        "quantization": spec["quantization"],
        "lora": spec["lora"],
        "from_job": spec["from_job"],
        "from_checkpoint": spec["from_checkpoint"],
        "trainable_parameters": train.get("trainable_parameters"),
        "steps": steps,
        "epochs": training["epochs"],
        "batch_size": training["batch_size"],
        "gradient_accumulation": training["gradient_accumulation"],
        "rows_per_step": training["batch_size"] * training["gradient_accumulation"],
        "max_seq_length": training["max_seq_length"],
        "packing": training["packing"],
        "assistant_only_loss": training["assistant_only_loss"],
        "learning_rate": training["learning_rate"],
        "scheduler": training["scheduler"],
        "warmup_steps": count_warmup(steps, JobSpec.model_validate(spec).training) if steps else None,
        "weight_decay": training["weight_decay"],
        "optimizer": training["optimizer"],
        "precision": train.get("precision") or training["precision"],
        "attention": train.get("attention"),
        "seed": training["seed"],
        "checkpoint_every_steps": spec["checkpoints"]["every_steps"],
        "exports": spec["exports"],
        "device": job["memory"]["device"],
        "versions": train.get("versions"),
    }


def build_performance(job: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    """`samples` are the rows that the optimizer saw: packed ones where packing is on."""
    training, progress = job["spec"]["training"], job["progress"]
    seconds, steps = train.get("train_seconds"), train.get("steps")
    samples = steps * training["batch_size"] * training["gradient_accumulation"] if steps else None
    tokens = progress["tokens_seen"]
    return {
        "total_seconds": seconds_between(job["started_at"], job["finished_at"]),
        "train_seconds": seconds,
        "seconds_per_step": seconds / steps if seconds and steps else None,
        "steps": steps or progress["step"],
        "epoch": progress["epoch"],
        "samples": samples,
        "samples_per_second": samples / seconds if samples and seconds else None,
        "tokens": tokens,
        "trained_tokens": progress["trained_tokens"],
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
        "memory": job["memory"],
        "stages": [
            {
                key: stage[key]
                for key in ("name", "status", "attempt", "duration_seconds", "peak_host_bytes", "peak_device_bytes")
            }
            for stage in job["stages"]
        ],
    }


def build_outcomes(
    job: dict[str, Any],
    train: dict[str, Any],
    points: list[dict[str, Any]],
    checkpoints: list[dict[str, Any]],
    events: list[dict[str, Any]],
) -> dict[str, Any]:
    base, tuned = job["metrics"]["eval_loss_base"], job["metrics"]["eval_loss"]
    of_tokens = job["spec"]["method"] != "dpo"
    return {
        "error": job["error"],
        "loss": build_loss(job, points),
        "held_out": {
            "loss_base": base,
            "loss_tuned": tuned,
            "change_percent": 100 * (tuned - base) / base if base and tuned is not None else None,
            "perplexity_base": perplexity(base) if of_tokens else None,
            "perplexity_tuned": perplexity(tuned) if of_tokens else None,
            "accuracy_base": job["metrics"].get("eval_accuracy_base"),
            "accuracy_tuned": job["metrics"].get("eval_accuracy"),
            "stop_probability_base": job["metrics"].get("eval_stop_probability_base"),
            "stop_probability_tuned": job["metrics"].get("eval_stop_probability"),
        },
        "best_step": train.get("best_step"),
        "stopped_early": train.get("stopped_early"),
        "rewards": None if of_tokens else build_rewards(job["metrics"]),
        "samples": train.get("samples"),
        "attempts": job["attempts"],
        "resumed_from_step": train.get("resumed_from_step"),
        "interruptions": [pick(event, "created_at", "message") for event in events if event["type"] == "job.retrying"],
        "warnings": [pick(event, "created_at", "message") for event in events if event["type"] == "job.warning"],
        "checkpoints": [pick(checkpoint, "step", "bytes", "created_at", "resumable") for checkpoint in checkpoints],
        "artifacts": [pick(artifact, "name", "kind", "bytes", "sha256", "url") for artifact in job["artifacts"]],
        "verified": build_verified(job, events),
    }


def build_verified(job: dict[str, Any], events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was found of each file: `name`, whether it is `offered`, and the figures. Files that failed are not offered."""
    found = {item["name"]: item["verification"] for item in job["artifacts"] if item.get("verification")}
    failed = {}
    if (job["error"] or {}).get("code") == "verification_failed":
        warned = [event["data"] for event in events if event["type"] == "job.warning" and "verification" in event["data"]]
        failed = {data["artifact"]: data["verification"] for data in warned}
    return [{"name": name, "offered": name not in failed} | verdict for name, verdict in (found | failed).items()]


def build_rewards(metrics: dict[str, Any]) -> dict[str, Any]:
    """Of a job that learned preferences: at its last step, and of the held-out pairs before and after."""
    names = [f"{of}{what}" for of in ("", "eval_") for what in ("reward_margin", "reward_accuracy")]
    return pick(metrics, *names, "eval_reward_margin_base", "eval_reward_accuracy_base")


def build_loss(job: dict[str, Any], points: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean is the trainer's own where it ended, else that of the points."""
    losses = [(point["step"], point["loss"]) for point in points if point.get("loss") is not None]
    first, last = (losses[0], losses[-1]) if losses else ((None, None), (None, None))
    mean = job["metrics"]["train_loss"]
    if mean is None and losses:
        mean = math.fsum(loss for _, loss in losses) / len(losses)
    return {"first_step": first[0], "first": first[1], "last_step": last[0], "last": last[1], "mean": mean}


def pick(item: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: item.get(key) for key in keys}


def seconds_between(start: str | None, end: str | None) -> float | None:
    if start is None or end is None:
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def perplexity(loss: float | None) -> float | None:
    """exp(mean cross-entropy in nats)."""
    return None if loss is None or loss > MOST_PERPLEXED else math.exp(loss)
