"""Writes an experiment report as Markdown: users' text escaped, sizes in GB of 2^30, a dash for what is not known."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

UNKNOWN = "–"
ENDINGS = {"succeeded": "succeeded", "failed": "failed", "cancelled": "was cancelled"}
ROWS_SHOWN = 5
CELL_CHARACTERS = 300
SPECIAL = re.compile(r"([\\`*_\[\]<>|~&])")
BLOCK_START = re.compile(r"^(\d*)([#+=.)-])", re.M)


def render(report: dict[str, Any]) -> str:
    """What `report.build` made, with the same four headings for every job, whatever its status and whatever is known."""
    sections = [
        f"# Experiment report: {escape(report['name'] or report['job_id'])}",
        f"Job {report['job_id']}, {report['status']}, created {report['created_at']}.",
        "## Purpose",
        escape_paragraphs(report["purpose"] or "") or "Not stated.",
        "## Setup",
        render_setup(report["setup"], report["labels"]),
        "## Performance observations",
        *render_performance(report["performance"]),
        "## Outcomes",
        *render_outcomes(report["status"], report["outcomes"]),
    ]
    return "\n\n".join(sections) + "\n"


def render_setup(setup: dict[str, Any], labels: dict[str, str]) -> str:
    lora, every = setup["lora"], setup["checkpoint_every_steps"]
    targets = lora["target_modules"] if isinstance(lora["target_modules"], str) else ", ".join(lora["target_modules"])
    warmup = f"warm-up steps: {number(setup['warmup_steps'])}"
    rows = [
        ("Base model", escape(setup["base_model"]) + (f" at {escape(setup['revision'])}" if setup["revision"] else "")),
        ("Data set", describe_dataset(setup["dataset"])),
        ("Samples", describe_samples(setup)),
        ("Tokens", f"{number(setup['tokens'])}, of which {number(setup['trained_tokens'])} are learned"),
        ("Rows", describe_rows(setup)),
        ("Chat template", describe_template(setup["chat_template"])),
        ("Data checks", describe_data(setup["data_report"])),
        ("Loss on", describe_loss(setup)),
        ("Method", f"{setup['method']}{describe_beta(setup)}, base weights held as {setup['quantization']}"),
        ("LoRA", f"r {number(lora['r'])}, alpha {number(lora['alpha'])}, dropout {number(lora['dropout'])}, {lora['variant']}"),
        ("LoRA target modules", escape(targets)),
        ("Starts from", describe_start(setup)),
        ("Trainable parameters", number(setup["trainable_parameters"])),
        ("Optimizer steps", number(setup["steps"])),
        ("Batch size x accumulation", describe_batch(setup)),
        ("Learning rate", f"{number(setup['learning_rate'])}, {setup['scheduler']}, {warmup}"),
        ("Optimizer", f"{setup['optimizer']}, weight decay {number(setup['weight_decay'])}"),
        ("Precision", f"{setup['precision']}, attention {setup['attention'] or 'unknown'}"),
        ("Checkpoints", f"every {number(every)} steps" if every else "none"),
        ("Exports", ", ".join(" ".join(export.values()) for export in setup["exports"])),
        ("Device", escape(setup["device"] or "unknown")),
        ("Versions", ", ".join(f"{package} {version}" for package, version in (setup["versions"] or {}).items()) or "unknown"),
        ("Labels", ", ".join(f"{escape(key)}={escape(value)}" for key, value in labels.items()) or "none"),
    ]
    return table(("", ""), rows)


def describe_start(setup: dict[str, Any]) -> str:
    if setup["from_checkpoint"]:
        return f"checkpoint {setup['from_checkpoint']} of {setup['from_job']}, nothing is trained"
    return f"the adapter of {setup['from_job']}" if setup["from_job"] else "a new adapter"


def describe_dataset(dataset: dict[str, Any]) -> str:
    if dataset["file"]:
        called = f"{escape(dataset['filename'])}, " if dataset["filename"] else ""
        return f"{called}{dataset['file']}, {dataset['format']}"
    hub = dataset["hub"]
    parts = [hub["repo"], hub["config"], hub["split"], hub["revision"] and f"at {hub['revision']}"]
    return f"{escape(' '.join(part for part in parts if part))}, {dataset['format']}"


def describe_samples(setup: dict[str, Any]) -> str:
    parts = {"trained on": "samples", "held out": "samples_held_out", "refused": "samples_refused", "cut": "rows_cut"}
    return ", ".join(f"{number(setup[key])} {what}" for what, key in parts.items())


def describe_template(template: dict[str, Any] | None) -> str:
    if template is None:
        return UNKNOWN
    owner = "the model's own" if template["source"] == "model" else "given to the model, which had none"
    stops = ", ".join(map(str, template["stop_token_ids"]))
    return f"{template['family']}, {owner}, SHA-256 {template['sha256'][:12]}…; stop tokens {stops}"


def describe_data(report: dict[str, Any] | None) -> str:
    """What was found in the rows, each with the first lines that it is in."""
    if report is None:
        return UNKNOWN
    parts = []
    for what, count, lines in (
        ("duplicates", "duplicates", "duplicate_lines"),
        ("equal to held-out rows", "rows_leaked", "leaked_lines"),
        ("without a learned token", "rows_untrained", "untrained_lines"),
        ("cut", "rows_cut", "cut_lines"),
        ("dropped", "rows_dropped", "dropped_lines"),
        ("split", "rows_split", "split_lines"),
        ("written as several documents", "rows_unrolled", "unrolled_lines"),
    ):
        if report[count]:
            shown = ", ".join(map(str, report[lines][:ROWS_SHOWN])) + (" …" if report[count] > ROWS_SHOWN else "")
            parts.append(f"{number(report[count])} {what} (lines {shown})")
    if report["tokens_lost"]:
        parts.append(f"{number(report['tokens_lost'])} tokens lost")
    return "; ".join(parts) or "nothing found"


def describe_rows(setup: dict[str, Any]) -> str:
    count, length = number(setup["packed_rows"]), number(setup["max_seq_length"])
    if setup["method"] == "dpo":
        return f"{count} pairs of answers, each with its prompt up to {length} tokens"
    return f"{count} of up to {length} tokens{', packed' * setup['packing']}"


def describe_loss(setup: dict[str, Any]) -> str:
    if setup["method"] == "dpo":
        return "chosen against rejected answers"
    return "the assistant's turns" if setup["assistant_only_loss"] and setup["method"] == "sft" else "all tokens"


def describe_beta(setup: dict[str, Any]) -> str:
    return "" if setup["beta"] is None else f" with beta {number(setup['beta'])}"


def describe_batch(setup: dict[str, Any]) -> str:
    factors = f"{number(setup['batch_size'])} x {number(setup['gradient_accumulation'])}"
    return f"{factors} = {number(setup['rows_per_step'])} rows a step"


def render_performance(performance: dict[str, Any]) -> list[str]:
    memory = performance["memory"]
    rows = [
        ("Whole job", duration(performance["total_seconds"])),
        ("Training", duration(performance["train_seconds"])),
        ("A step", seconds(performance["seconds_per_step"])),
        ("Steps done", f"{number(performance['steps'])}, {number(performance['epoch'])} epochs"),
        ("Rows seen", f"{number(performance['samples'])}, {number(performance['samples_per_second'])} a second"),
        ("Tokens seen", f"{number(performance['tokens'])}, {number(performance['tokens_per_second'])} a second"),
        ("Learned tokens seen", number(performance["trained_tokens"])),
        ("Memory of the device", gigabytes(memory["device_total_bytes"])),
        ("Reserved at the start", gigabytes(memory["start_reserved_bytes"])),
        ("Reserved at the peak", gigabytes(memory["peak_reserved_bytes"]) + share(memory["peak_percent"])),
        ("Reserved for training", gigabytes(memory["training_reserved_bytes"]) + share(memory["training_percent"])),
    ]
    stages = [
        (
            stage["name"],
            stage["status"],
            number(stage["attempt"]),
            seconds(stage["duration_seconds"]),
            gigabytes(stage["peak_host_bytes"]),
            gigabytes(stage["peak_device_bytes"]),
        )
        for stage in performance["stages"]
    ]
    header = ("Stage", "Status", "Attempt", "Duration", "Peak host memory", "Peak device memory")
    notes = (
        ["Without an accelerator, reserved memory is the training process's resident memory."]
        if memory["device"] == "cpu"
        else []
    )
    return [table(("", ""), rows), *notes, table(header, stages)]


def render_outcomes(status: str, outcomes: dict[str, Any]) -> list[str]:
    loss, held_out = outcomes["loss"], outcomes["held_out"]
    losses = [
        (f"First training loss, step {number(loss['first_step'])}", number(loss["first"])),
        (f"Last training loss, step {number(loss['last_step'])}", number(loss["last"])),
        ("Mean training loss", number(loss["mean"])),
        (
            "Held-out loss, base → tuned",
            arrow(held_out["loss_base"], held_out["loss_tuned"]) + share(held_out["change_percent"], "+"),
        ),
        ("Held-out perplexity, base → tuned", arrow(held_out["perplexity_base"], held_out["perplexity_tuned"])),
        ("Held-out accuracy, base → tuned", arrow(held_out["accuracy_base"], held_out["accuracy_tuned"])),
        (
            "Probability of stopping where due, base → tuned",
            arrow(held_out["stop_probability_base"], held_out["stop_probability_tuned"]),
        ),
        *describe_rewards(outcomes["rewards"]),
        ("Exact answers, before → after", describe_exact(outcomes["samples"])),
    ]
    return [
        describe_end(status, outcomes["error"]),
        table(("", ""), losses),
        *render_samples(outcomes["samples"]),
        *render_course(outcomes),
        *render_artifacts(outcomes["artifacts"]),
        *render_verified(outcomes["verified"]),
    ]


def describe_end(status: str, error: dict[str, Any] | None) -> str:
    if error is None:
        return f"The job {ENDINGS.get(status, f'is {status}')}."
    hint = f" {escape(error['hint'])}" if error.get("hint") else ""
    return f"The job {ENDINGS.get(status, f'is {status}')}: {escape(error['code'])}. {escape(error['message'])}{hint}"


def describe_rewards(rewards: dict[str, Any] | None) -> list[tuple[str, str]]:
    if rewards is None:
        return []
    return [
        ("Reward margin, last step", number(rewards["reward_margin"])),
        ("Reward accuracy, last step", number(rewards["reward_accuracy"])),
        ("Held-out reward margin, before → after", arrow(rewards["eval_reward_margin_base"], rewards["eval_reward_margin"])),
        (
            "Held-out reward accuracy, before → after",
            arrow(rewards["eval_reward_accuracy_base"], rewards["eval_reward_accuracy"]),
        ),
    ]


def describe_exact(samples: dict[str, Any] | None) -> str:
    if samples is None:
        return UNKNOWN
    return f"{samples['exact_before']} → {samples['exact_after']} of {samples['count']}"


def render_samples(samples: dict[str, Any] | None) -> list[str]:
    """A few of the held-out questions; the JSON form has more of them, and the whole prompts."""
    shown = samples["rows"][:ROWS_SHOWN] if samples else []
    keys = ("question", "reference", "before", "after")
    rows = [tuple(escape(row[key]) or "(nothing)" for key in keys) for row in shown]
    return ["### Held-out samples", table(("Question", "Reference", "Before", "After"), rows)] if rows else []


def render_course(outcomes: dict[str, Any]) -> list[str]:
    """How the job came to its end: attempts, resumes, warnings, checkpoints."""
    lines = [f"Attempts of a stage at most: {number(outcomes['attempts'])}."]
    if outcomes["best_step"] is not None:
        ended = "Training was stopped early; the" if outcomes["stopped_early"] else "The"
        lines.append(f"{ended} adapter is that of step {number(outcomes['best_step'])}, with the lowest held-out loss.")
    if outcomes["resumed_from_step"] is not None:
        lines.append(f"The last attempt of training went on from step {number(outcomes['resumed_from_step'])}.")
    lines += [
        f"{event['created_at']}: {escape(event['message'])}" for event in outcomes["interruptions"] + outcomes["warnings"]
    ]
    rows = [
        (
            number(checkpoint["step"]),
            gigabytes(checkpoint["bytes"]),
            checkpoint["created_at"],
            {True: "yes", False: "no"}.get(checkpoint["resumable"], UNKNOWN),
        )
        for checkpoint in outcomes["checkpoints"]
    ]
    sections = ["### Attempts and checkpoints", "\n".join(f"- {line}" for line in lines)]
    return [*sections, table(("Checkpoint at step", "Size", "Written", "Can be resumed"), rows) if rows else "No checkpoints."]


def render_artifacts(artifacts: list[dict[str, Any]]) -> list[str]:
    rows = [
        (
            escape(item["name"]),
            item["kind"],
            size(item["bytes"]),
            f"`{item['sha256']}`",
        )
        for item in artifacts
    ]
    return ["### Artifacts", table(("Name", "Kind", "Size", "SHA-256"), rows) if rows else "None."]


def render_verified(verified: list[dict[str, Any]]) -> list[str]:
    """How far each file is from the merged model."""
    heads = ("File", "KL divergence", "At most", "Top-1 agreement", "Perplexity, merged → file", "Found right")
    rows = [
        (
            escape(item["name"]),
            *(number(item.get(key)) for key in ("kl", "most_kl", "top1")),
            arrow(item.get("reference_perplexity"), item.get("perplexity")),
            "yes" if item["passed"] else f"no, it is kept aside: {escape('; '.join(item['problems']))}",
        )
        for item in verified
    ]
    return ["### Verified files", table(heads, rows)] if rows else []


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escape(text: str) -> str:
    """One line that Markdown shows as it is, in a table's cell too; cut where it is very long."""
    line = " ".join(text.split())
    shown = line if len(line) <= CELL_CHARACTERS else line[:CELL_CHARACTERS].rstrip() + " …"
    return SPECIAL.sub(r"\\\1", shown)


def escape_paragraphs(text: str) -> str:
    """Keeps the lines of a text and takes every other meaning from it."""
    lines = "\n".join(line.strip() for line in SPECIAL.sub(r"\\\1", text.strip()).splitlines())
    return BLOCK_START.sub(r"\1\\\2", lines)


def number(value: float | None) -> str:
    """Whole numbers with separators, others with four significant digits."""
    if value is None:
        return UNKNOWN
    if isinstance(value, int) or value.is_integer():
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.4g}"


def seconds(value: float | None) -> str:
    return UNKNOWN if value is None else f"{number(round(value, 2))} s"


def duration(value: float | None) -> str:
    return UNKNOWN if value is None else f"{seconds(value)} ({value / 60:.2f} minutes)"


def gigabytes(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value / 2**30:.3f} GB"


def size(value: int) -> str:
    """In GB too where three decimals can show it."""
    return f"{number(value)} bytes" + (f", {gigabytes(value)}" if value >= 2**20 else "")


def share(value: float | None, sign: str = "") -> str:
    return "" if value is None else f" ({value:{sign}.1f} %)"


def arrow(before: float | None, after: float | None) -> str:
    return f"{number(before)} → {number(after)}"
