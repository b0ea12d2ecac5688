"""The first stage of a job: the base model at hand, the rows chosen, tokenised and packed, before any GPU is claimed.

out/plan/               what is trained on, see worker.data.plan
out/validation/         the same for the held-out rows, if there are any, and
    samples.jsonl       held-out prompts: {"prompt_ids", "prompt", "question", "reference", "stop_token_ids"} a line
out/adapter/            only of a job that exports a checkpoint: the checkpoint's; and its tokenizer in out/tokenizer/
out/chat_template.jinja the template, if the base model had none: it is published with the model
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode
from worker.data.base_models import BaseModel, fetch, is_commit
from worker.data.encoded_sets import EncodedSet, encode_set
from worker.data.plan import plan_bytes, write_plan
from worker.data.rows import Refusal
from worker.data.surveys import Survey, name_lines
from worker.data.token_reports import LOW_TRAINED_SHARE, report_tokens
from worker.data.tokenizer import read_json
from worker.exports import adapter_files, companions, tokenizer_files
from worker.exports.convertible import require_convertible
from worker.publishing.access import require_access
from worker.publishing.failures import Target
from worker.space import require_space
from worker.stages import Inputs, Outcome, Report, StageFailure
from worker.training.precision import refuse_overflow


def run(spec: JobSpec, inputs: Inputs, out: Path, report: Report) -> Outcome:
    """`values`: base_model {name, revision, card}, counts (the contract's `data` and more), plan_sha256, validation (whether
    there is a validation plan), format, chat_template, report (see worker.data.token_reports)."""
    require_publishable(spec, inputs, report)
    token = inputs.secret(spec.hub_token)
    places: dict[str, Any] = {"cache_dir": inputs.cache_dir, "models_dir": inputs.models_dir}
    model = fetch(spec.base_model, spec.revision, **places, token=token, ask_access=True, report=report)
    if is_commit(model.revision):
        report("resolved", spec={"revision": model.revision})
    require_convertible(model, spec, inputs, report)
    require_modules(model, spec)
    require_same_base(model, inputs.adapter)
    taken = {"train": take_adapter(spec, inputs, out)} if spec.from_checkpoint else {}
    refuse_overflow(spec.training.precision, read_json(model.path / "config.json")["model_type"])

    def check(found: Survey) -> None:
        report("resolved", spec={"dataset": {"format": found.form}})
        require_rows(found, spec)

    encoded = encode_set(spec, inputs, model, report, spools=out, on_survey=check)
    require_documents(encoded, spec)
    require_held_out(encoded, spec)
    require_context(encoded, model, spec)

    size = plan_bytes(encoded.training.documents) + plan_bytes(encoded.validation.documents)
    require_space(out, size, "The plan of the data set")
    plan = write_plans(spec, out, encoded, report)
    sides = encoded.training, encoded.validation
    facts = report_tokens(encoded.found, encoded.choice, *sides, packed_rows=plan["rows"])
    counts = count(facts, plan)
    report("data", **counts)
    for code, message in warnings_of(spec, facts, encoded):
        report("warning", code=code, message=message)
    require_share(facts, spec)
    losses = {key: facts[key] for key in ("rows_split", "rows_dropped", "rows_unrolled", "duplicates", "rows_leaked")}
    return Outcome(
        {
            "base_model": {"name": model.name, "revision": model.revision, "card": companions.known_of(model.path)},
            "counts": losses | counts | {"validation_rows": encoded.validation.counts["used"]},
            "plan_sha256": plan["sha256"],
            "validation": bool(len(encoded.validation.documents)),
            "format": encoded.found.form,
            "chat_template": facts["chat_template"],
            "report": facts,
        }
        | taken,
        [*adapter_files.list_files(spec, out), *tokenizer_files.export(model.path, out, out)] if taken else [],
    )


def take_adapter(spec: JobSpec, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Puts the checkpoint's adapter where the later stages look for what was trained, and returns what they are told of it.
    StageFailure invalid_spec when the checkpoint is damaged."""
    from worker.training import checkpoints  # costs the import of torch

    assert inputs.adapter is not None
    try:
        manifest = checkpoints.read(inputs.adapter)
    except checkpoints.Incomplete as reason:
        message = f"The checkpoint {spec.from_checkpoint} cannot be exported: {reason}."
        hint = "Choose another one: GET /v1/jobs/{id}/checkpoints lists those of a job."
        raise StageFailure(FailureCode.INVALID_SPEC, message, hint=hint, param="from_checkpoint") from reason
    adapter_files.link(inputs.adapter, out)
    sha256 = manifest["files"]["adapter_model.safetensors"]["sha256"]
    source = {"id": spec.from_checkpoint, "job": spec.from_job, "adapter_sha256": sha256}
    return {"adapter": "adapter", "steps": manifest["step"], "from_checkpoint": source}


def require_publishable(spec: JobSpec, inputs: Inputs, report: Report) -> None:
    """StageFailure hub_unauthorized, hub_unavailable, invalid_spec, before anything is paid for that could not be published."""
    for place, entry in enumerate(spec.publish):
        report("progress", message=f"Asking the hub about {entry.repo}")
        require_access(Target(place, entry.repo), inputs.secret(entry.token) or "", report, private=entry.private)


def require_modules(model: BaseModel, spec: JobSpec) -> None:
    """StageFailure invalid_spec when the adapter is to change modules that the base model does not have."""
    if spec.lora.target_modules != "all-linear" or spec.lora.modules_to_save:
        from worker.training import adapter_modules  # costs the import of torch and transformers

        adapter_modules.check_modules(adapter_modules.empty_model(model.path), spec)


def require_same_base(model: BaseModel, adapter: Path | None) -> None:
    """StageFailure invalid_spec when the adapter to start from was trained on another revision of the base model."""
    made_on = read_json(adapter / "adapter_config.json")["revision"] if adapter else model.revision
    if made_on != model.revision:
        message = (
            f"The adapter of from_job was trained on {model.name} as revision {made_on}, which is here as {model.revision}."
        )
        hint = "Give the revision that the adapter was trained on, or start without from_job."
        patch = {"from_job": None}
        raise StageFailure(FailureCode.INVALID_SPEC, message, hint=hint, param="from_job", patch=patch)


def require_rows(found: Survey, spec: JobSpec) -> None:
    """StageFailure dataset_invalid when too many rows are refused, or all of them, or they are not what the method learns."""
    if found.refused and (found.refused > spec.dataset.max_refused or not found.usable):
        raise refused_rows(found.refusals, found.refused, found.rows)
    if (found.form == "preference") != (spec.method == "dpo"):
        wanted = "two answers to one prompt, chosen and rejected" if spec.method == "dpo" else "answers, not preferences"
        message = f"The rows are {found.form}, but the method {spec.method} learns from {wanted}."
        patch = {"method": "dpo"} if found.form == "preference" else {"method": "sft"}
        raise StageFailure(
            FailureCode.INVALID_SPEC, message, hint="Change the method or the data set.", param="method", patch=patch
        )


def refused_rows(refusals: list[Refusal], refused: int, rows: int) -> StageFailure:
    message = f"{refused} of {rows} rows cannot be used. {name_lines(refusals, refused)}"
    hint = "Correct these rows, or set dataset.max_refused to the number of rows that may be left out."
    patch = {"dataset": {"max_refused": refused}} if refused < rows else None
    return StageFailure(FailureCode.DATASET_INVALID, message, hint=hint, param="dataset.max_refused", patch=patch)


def require_documents(encoded: EncodedSet, spec: JobSpec) -> None:
    found, training = encoded.found, encoded.training
    refused = found.refused + training.refused + encoded.validation.refused
    refusals = [*found.refusals, *training.refusals, *encoded.validation.refusals]
    if refused > found.refused and (refused > spec.dataset.max_refused or not len(training.documents)):
        raise refused_rows(refusals, refused, found.rows)
    if not len(training.documents):
        message = f"None of the {found.usable} rows has a trained token within {spec.training.max_seq_length} tokens."
        hint = "Raise training.max_seq_length, or set dataset.long_rows to split."
        raise StageFailure(FailureCode.DATASET_INVALID, message, hint=hint, param="training.max_seq_length")


def require_held_out(encoded: EncodedSet, spec: JobSpec) -> None:
    if spec.evaluation.every_steps and not spec.from_checkpoint and not len(encoded.validation.documents):
        message = (
            "No row is held out, so evaluation.every_steps has nothing to look at: the data set is too small for its share."
        )
        hint = "Raise dataset.validation_fraction, or name a dataset.validation_file."
        raise StageFailure(FailureCode.DATASET_INVALID, message, hint=hint, param="dataset.validation_fraction")


def require_context(encoded: EncodedSet, model: BaseModel, spec: JobSpec) -> None:
    """StageFailure invalid_spec when a document is longer than what the model was made for."""
    context = read_json(model.path / "config.json").get("max_position_embeddings")
    longest = max([*encoded.training.documents.lengths, *encoded.validation.documents.lengths])
    if context is not None and longest > context:
        message = f"A row has {longest} tokens, but {model.name} reads at most {context}."
        patch = {"training": {"max_seq_length": context}}
        hint = f"Set training.max_seq_length to {context} or less."
        raise StageFailure(FailureCode.INVALID_SPEC, message, hint=hint, param="training.max_seq_length", patch=patch)


def require_share(facts: dict[str, Any], spec: JobSpec) -> None:
    """StageFailure dataset_invalid when hardly any token would be trained: the GPU's time would go into prompts."""
    if facts["trained_tokens"] >= LOW_TRAINED_SHARE * facts["tokens"]:
        return
    message = f"Only {facts['trained_tokens']} of {facts['tokens']} tokens would be trained, less than {LOW_TRAINED_SHARE:.0%}."
    hint = "Look at GET /v1/files/{id}/preview: the answers are very short, or not where they should be."
    patch = {"training": {"assistant_only_loss": False}} if spec.training.assistant_only_loss else None
    raise StageFailure(FailureCode.DATASET_INVALID, message, hint=hint, param="training.assistant_only_loss", patch=patch)


def write_plans(spec: JobSpec, out: Path, encoded: EncodedSet, report: Report) -> dict[str, Any]:
    """The facts of the training plan."""
    options: dict[str, Any] = {
        "max_seq_length": spec.training.max_seq_length,
        "packing": spec.training.packing,
        "seed": spec.training.seed,
        "pairs": encoded.found.form == "preference",
        "report": report,
    }
    training, validation = encoded.training.documents, encoded.validation.documents
    if len(validation):
        write_plan(out / "validation", validation, **options)
        stops = sorted(encoded.training.encoder.stop_token_ids)
        lines = [json.dumps(question | {"stop_token_ids": stops}, ensure_ascii=False) + "\n" for question in encoded.questions]
        (out / "validation" / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    plan = write_plan(out / "plan", training, **options)
    for spool in (training, validation):
        spool.remove()
    template = encoded.training.encoder.template
    if template.source == "default" and encoded.found.form != "text":
        (out / "chat_template.jinja").write_text(template.text, encoding="utf-8")
    return plan


def count(facts: dict[str, Any], plan: dict[str, Any]) -> dict[str, int]:
    """The contract's `data`."""
    return {
        "rows": facts["rows_used"],
        "rows_refused": facts["rows_refused"],
        "tokens": plan["tokens"],
        "trained_tokens": plan["trained_tokens"],
        "rows_cut": facts["rows_cut"],
        "packed_rows": plan["rows"],
    }


def warnings_of(spec: JobSpec, facts: dict[str, Any], encoded: EncodedSet) -> Iterator[tuple[str, str]]:
    longer = f"rows of more than {spec.training.max_seq_length} tokens are"
    if refused := facts["rows_refused"]:
        refusals = [Refusal(**refusal) for refusal in facts["refusals"]]
        yield "rows_refused", f"{refused} rows are left out. {name_lines(refusals, refused)}"
    if facts["rows_cut"]:
        yield "rows_cut", f"{facts['rows_cut']} {longer} cut. Lines {named(facts['cut_lines'])}."
    if facts["rows_split"]:
        yield "rows_split", f"{facts['rows_split']} {longer} split."
    if facts["rows_dropped"]:
        yield "rows_dropped", f"{facts['rows_dropped']} {longer} left out. Lines {named(facts['dropped_lines'])}."
    if facts["rows_unrolled"]:
        what = "conversations are written as several documents, because the chat template rewrites earlier answers"
        yield "rows_unrolled", f"{facts['rows_unrolled']} {what}: {facts['documents']} documents in all."
    if facts["duplicates"]:
        yield "duplicate_rows", f"{facts['duplicates']} rows are equal to another one. Lines {named(facts['duplicate_lines'])}."
    if facts["rows_leaked"]:
        what = "rows are not trained on, because they are equal to held-out rows"
        yield "held_out_rows", f"{facts['rows_leaked']} {what}. Lines {named(facts['leaked_lines'])}."
    if spec.dataset.max_samples and facts["rows_used"] < spec.dataset.max_samples:
        yield "fewer_rows", f"max_samples is {spec.dataset.max_samples}, but only {facts['rows_used']} rows are trained on."
    if encoded.training.encoder.unstopped:
        message = "The chat template ends answers without a special token; the model may not learn to stop."
        yield "no_stop_token", message


def named(lines: list[int], most: int = 5) -> str:
    return ", ".join(map(str, lines[:most])) + (" and more" if len(lines) > most else "")
