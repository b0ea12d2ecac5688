"""One row of an uploaded file as a base model would see it: its tokens, which of them are trained, and where it is cut."""

from itertools import islice
from pathlib import Path
from typing import Any

from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode
from worker.data.base_models import fetch
from worker.data.encoded_sets import make_encoder, open_rows
from worker.data.formats import Sample
from worker.data.long_rows import fit_one
from worker.data.masks import Encoded, Encoder
from worker.data.rows import Refusal, RowRefused
from worker.data.surveys import normalise, tell_form
from worker.data.token_reports import hash_tokenizer
from worker.stages import Inputs, Outcome, Report, StageFailure

MOST_TOKENS = 10_000
"""So many tokens are listed; the counts are of all."""


def run(spec: JobSpec, inputs: Inputs, out: Path, report: Report) -> Outcome:
    """`values` is {"preview": …}: row, line, format, base_model, revision, tokenizer_sha256, chat_template, and what
    `show` gives; `refused` is {code, reason} for a row that cannot be trained on, else None.

    StageFailure invalid_spec for a row that is not there, and as `prepare` for a file that is no data.
    """
    token = inputs.secret(spec.hub_token)
    places: dict[str, Any] = {"cache_dir": inputs.cache_dir, "models_dir": inputs.models_dir}
    model = fetch(spec.base_model, spec.revision, **places, token=token, report=report)
    form, rows = tell_form(open_rows(spec, inputs, report)(), spec.dataset.format)
    item = next(islice(normalise(rows, form), inputs.row, None), None)
    if item is None:
        message = f"The file has no row {inputs.row}; rows count from 0."
        raise StageFailure(FailureCode.INVALID_SPEC, message, param="row")
    encoder = make_encoder(model, spec)
    about = {
        "row": inputs.row,
        "line": item.line,
        "format": form,
        "base_model": model.name,
        "revision": model.revision,
        "tokenizer_sha256": hash_tokenizer(model.path),
    }
    if isinstance(item, Refusal):
        return Outcome({"preview": about | refused(item)})
    [encoded] = encoder.encode([item.sample])
    if isinstance(encoded, RowRefused):
        return Outcome({"preview": about | refused(encoded.at(item.line))})
    return Outcome({"preview": about | {"refused": None} | show(item.sample, encoded, encoder, spec)})


def refused(refusal: Refusal) -> dict[str, Any]:
    empty: dict[str, Any] = {"text": None, "tokens": [], "token_count": 0, "trained_tokens": 0, "documents": 0, "cut_at": None}
    return {"refused": {"code": refusal.code, "reason": refusal.reason}} | empty


def show(sample: Sample, encoded: list[Encoded], encoder: Encoder, spec: JobSpec) -> dict[str, Any]:
    """`text`: all documents of the row. `tokens`: {id, text, trained, kept, document} each; `kept` is False past a row's end.

    `documents` counts what the row becomes: parts of a long conversation, an answer each where the template rewrites earlier
    ones, the chosen and the rejected side of a preference. `cut_at` is the first token that is not kept, None if all are.
    """
    length, policy = spec.training.max_seq_length, spec.dataset.long_rows
    fitted = fit_one(sample, encoded, encoder, length, policy)
    pieces = fitted.pieces
    tokens = [
        {
            "id": index,
            "text": encoder.decode([index]),
            "trained": bool(trained) and place > 0,
            "kept": bool(fitted.documents) and place < length,
            "document": number,
        }
        for number, piece in enumerate(pieces)
        for place, (index, trained) in enumerate(zip(piece.input_ids.tolist(), piece.trained.tolist(), strict=True))
    ]
    return {
        "text": "".join(encoder.decode(piece.input_ids.tolist()) for piece in pieces),
        "tokens": tokens[:MOST_TOKENS],
        "token_count": len(tokens),
        "trained_tokens": sum(token["trained"] and token["kept"] for token in tokens),
        "documents": len(pieces),
        "cut_at": next((place for place, token in enumerate(tokens) if not token["kept"]), None),
        "max_seq_length": length,
        "long_rows": policy,
        "chat_template": None if isinstance(sample, str) else encoder.facts(),
    }
