"""What a base model's tokenizer and chat template make of an uploaded file: everything counted, nothing kept."""

from pathlib import Path
from typing import Any

import numpy as np

from app.jobs.spec import JobSpec
from worker.data.base_models import fetch
from worker.data.encoded_sets import encode_set
from worker.data.plan import share_rows
from worker.data.token_reports import hash_tokenizer, report_tokens
from worker.stages import Inputs, Outcome, Report


def run(spec: JobSpec, inputs: Inputs, out: Path, report: Report) -> Outcome:
    """`values` is {"report": …}: that of worker.data.token_reports, with base_model, revision, tokenizer_sha256 and
    assistant_only_loss. StageFailure as `prepare`, but not for rows that are refused, or that nothing can be learned from."""
    token = inputs.secret(spec.hub_token)
    places: dict[str, Any] = {"cache_dir": inputs.cache_dir, "models_dir": inputs.models_dir}
    model = fetch(spec.base_model, spec.revision, **places, token=token, report=report)
    encoded = encode_set(spec, inputs, model, report, spools=None)
    lengths = np.asarray(encoded.training.documents.lengths, dtype=np.int64)
    pairs = encoded.found.form == "preference"
    rows = share_rows(lengths, spec.training.max_seq_length, packing=spec.training.packing, pairs=pairs)
    facts = report_tokens(encoded.found, encoded.choice, encoded.training, encoded.validation, packed_rows=len(rows))
    about = {
        "base_model": model.name,
        "revision": model.revision,
        "tokenizer_sha256": hash_tokenizer(model.path),
        "assistant_only_loss": spec.training.assistant_only_loss,
    }
    return Outcome({"report": facts | about})
