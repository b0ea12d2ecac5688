"""The first stage of a job: the base model at hand, the rows chosen, tokenised and packed, before any GPU is claimed.

out/plan/           what is trained on, see worker.data.plan
out/validation/     the same for the held-out rows, if there are any, and
    samples.jsonl   held-out prompts: {"prompt_ids", "prompt", "question", "reference", "stop_token_ids"} a line
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode
from worker.data.base_models import BaseModel, fetch, is_commit
from worker.data.encoding import Encoding, encode_rows
from worker.data.masks import Encoder
from worker.data.plan import Document, write_plan
from worker.data.readers import read_rows
from worker.data.rows import Refusal, Row
from worker.data.surveys import Survey, choose, name_lines, normalise, survey
from worker.data.tokenizer import eos_token_ids, load_tokenizer, read_json
from worker.stages import Inputs, Outcome, Report, StageFailure

LOW_TRAINED_SHARE = 0.01


def run(spec: JobSpec, inputs: Inputs, out: Path, report: Report) -> Outcome:
    """`values`: base_model {name, revision}, counts (the contract's `data` and more), plan_sha256, validation (whether there
    is a validation plan), format, chat_template."""
    token = inputs.secret(spec.hub_token)
    places: dict[str, Any] = {"cache_dir": inputs.cache_dir, "models_dir": inputs.models_dir}
    model = fetch(spec.base_model, spec.revision, **places, token=token, ask_access=True, report=report)
    if is_commit(model.revision):
        report("resolved", spec={"revision": model.revision})
    read = open_rows(spec, inputs, token, report)
    report("progress", message="Reading the data set")
    found = survey(read(), form=spec.dataset.format, seed=spec.dataset.seed)
    report("resolved", spec={"dataset": {"format": found.form}})
    require_rows(found, spec)

    choice = choose(found, max_samples=spec.dataset.max_samples, validation_fraction=spec.dataset.validation_fraction)
    encoder = make_encoder(model, spec)
    training, validation = (Encoding(encoder, spec.training.max_seq_length, spec.dataset.long_rows) for _ in range(2))
    report("progress", message=f"Tokenising {len(choice.training) + len(choice.validation)} rows")
    rows = normalise(read(), found.form)
    questions = encode_rows(rows, choice, training, validation, prompts=spec.evaluation.samples, report=report)
    require_documents(training, found, spec)
    require_context(training.documents + validation.documents, model, spec)

    plan = write_plans(spec, out, training, validation, questions, encoder)
    counts = count(found, training, plan)
    report("data", **counts)
    for code, message in warnings_of(spec, found, choice.left_out, training, encoder, plan):
        report("warning", code=code, message=message)
    losses = {f"rows_{name}": number for name, number in vars(training.losses).items() if name != "tokens_lost"}
    return Outcome(
        {
            "base_model": {"name": model.name, "revision": model.revision},
            "counts": losses | counts | {"validation_rows": validation.rows, "duplicates": found.duplicates},
            "plan_sha256": plan["sha256"],
            "validation": bool(validation.documents),
            "format": found.form,
            "chat_template": encoder.facts(),
        }
    )


def make_encoder(model: BaseModel, spec: JobSpec) -> Encoder:
    tokenizer = load_tokenizer(model.path)
    eos = eos_token_ids(model.path, tokenizer)
    return Encoder(tokenizer, assistant_only=spec.training.assistant_only_loss, eos_token_ids=eos)


def open_rows(spec: JobSpec, inputs: Inputs, token: str | None, report: Report) -> Callable[[], Iterator[Row | Refusal]]:
    """A function that reads the data set from its start each time."""
    if spec.dataset.hub is None:
        assert inputs.file is not None
        return partial(read_rows, inputs.file, inputs.filename)
    from worker.data.hub_datasets import open_hub_dataset

    read, commit = open_hub_dataset(spec.dataset.hub, cache_dir=inputs.cache_dir, token=token, report=report)
    report("resolved", spec={"dataset": {"hub": {"revision": commit}}})
    return read


def require_rows(found: Survey, spec: JobSpec) -> None:
    """StageFailure dataset_invalid when too many rows are refused, or all of them."""
    if found.refused and (found.refused > spec.dataset.max_refused or not found.usable):
        raise refused_rows(found.refusals, found.refused, found.rows)


def refused_rows(refusals: list[Refusal], refused: int, rows: int) -> StageFailure:
    message = f"{refused} of {rows} rows cannot be used. {name_lines(refusals, refused)}"
    hint = "Correct these rows, or set dataset.max_refused to the number of rows that may be left out."
    patch = {"dataset": {"max_refused": refused}} if refused < rows else None
    return StageFailure(FailureCode.DATASET_INVALID, message, hint=hint, param="dataset.max_refused", patch=patch)


def require_documents(training: Encoding, found: Survey, spec: JobSpec) -> None:
    refused = found.refused + len(training.refusals)
    if training.refusals and (refused > spec.dataset.max_refused or not training.documents):
        raise refused_rows(found.refusals + training.refusals, refused, found.rows)
    if not training.documents:
        message = f"None of the {found.usable} rows has a trained token within {spec.training.max_seq_length} tokens."
        hint = "Raise training.max_seq_length, or set dataset.long_rows to split."
        raise StageFailure(FailureCode.DATASET_INVALID, message, hint=hint, param="training.max_seq_length")


def require_context(documents: list[Document], model: BaseModel, spec: JobSpec) -> None:
    """StageFailure invalid_spec when a document is longer than what the model was made for."""
    context = read_json(model.path / "config.json").get("max_position_embeddings")
    longest = max(len(document.input_ids) for document in documents)
    if context is not None and longest > context:
        message = f"A row has {longest} tokens, but {model.name} reads at most {context}."
        patch = {"training": {"max_seq_length": context}}
        hint = f"Set training.max_seq_length to {context} or less."
        raise StageFailure(FailureCode.INVALID_SPEC, message, hint=hint, param="training.max_seq_length", patch=patch)


def write_plans(
    spec: JobSpec, out: Path, training: Encoding, validation: Encoding, questions: list[dict[str, Any]], encoder: Encoder
) -> dict[str, Any]:
    """The facts of the training plan."""
    options: dict[str, Any] = {
        "max_seq_length": spec.training.max_seq_length,
        "packing": spec.training.packing,
        "seed": spec.training.seed,
    }
    if validation.documents:
        write_plan(out / "validation", validation.documents, **options)
        stops = sorted(encoder.stop_token_ids)
        lines = [json.dumps(question | {"stop_token_ids": stops}, ensure_ascii=False) + "\n" for question in questions]
        (out / "validation" / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    return write_plan(out / "plan", training.documents, **options)


def count(found: Survey, training: Encoding, plan: dict[str, Any]) -> dict[str, int]:
    """The contract's `data`."""
    return {
        "rows": training.rows,
        "rows_refused": found.refused + len(training.refusals),
        "tokens": plan["tokens"],
        "trained_tokens": plan["trained_tokens"],
        "rows_cut": training.losses.cut,
        "packed_rows": plan["rows"],
    }


def warnings_of(
    spec: JobSpec, found: Survey, left_out: int, training: Encoding, encoder: Encoder, plan: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    losses, length = training.losses, spec.training.max_seq_length
    if refused := found.refused + len(training.refusals):
        yield "rows_refused", f"{refused} rows are left out. {name_lines(found.refusals + training.refusals, refused)}"
    if losses.cut:
        yield "rows_cut", f"{losses.cut} rows of more than {length} tokens are cut."
    if losses.split:
        yield "rows_split", f"{losses.split} rows of more than {length} tokens are split."
    if losses.dropped:
        yield "rows_dropped", f"{losses.dropped} rows of more than {length} tokens are left out."
    if found.duplicates:
        yield "duplicate_rows", f"{found.duplicates} rows are equal to another one."
    if left_out:
        yield "held_out_rows", f"{left_out} rows are not trained on, because they are equal to held-out rows."
    if spec.dataset.max_samples and training.rows < spec.dataset.max_samples:
        yield "fewer_rows", f"max_samples is {spec.dataset.max_samples}, but only {training.rows} rows are trained on."
    if encoder.unstopped:
        message = "The chat template ends answers without a special token; the model may not learn to stop."
        yield "no_stop_token", message
    if plan["trained_tokens"] < LOW_TRAINED_SHARE * plan["tokens"]:
        yield "few_trained_tokens", f"Only {plan['trained_tokens']} of {plan['tokens']} tokens are trained."
