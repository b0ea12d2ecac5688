"""What a base model's tokenizer and chat template make of a data set, counted, and the worst of it named by its lines."""

import hashlib
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from worker.data.encoding import Encoding
from worker.data.surveys import LISTED_LINES, LISTED_REFUSALS, Choice, Survey

LOW_TRAINED_SHARE = 0.01
"""Below this share of trained tokens a mask is wrong or the answers are; nothing is learned at the price of everything."""


TOKENIZER_FILES = ("*token*.json", "*.model", "vocab*", "merges.txt", "chat_template*", "generation_config.json")


def report_tokens(
    found: Survey, choice: Choice, training: Encoding, validation: Encoding, *, packed_rows: int
) -> dict[str, Any]:
    """Everything that is counted. The names are the contract's where it has them; `*_lines` are the first LISTED_LINES each.

    `rows` and `rows_refused` are of the file, `rows_used` gave documents. `tokens_lost` were cut off or dropped.
    `rows_untrained` are those refused because no token of theirs would be trained.
    """
    refusals = sorted([*found.refusals, *training.refusals, *validation.refusals], key=lambda refusal: refusal.line)
    refused = found.refused_by_code + training.refused_by_code + validation.refused_by_code
    return {
        "rows": found.rows,
        "rows_refused": refused.total(),
        "refusals": [refusal._asdict() for refusal in refusals[:LISTED_REFUSALS]],
        "refused_by_code": dict(refused),
        "format": found.form,
        "duplicates": len(found.duplicates),
        "duplicate_lines": found.duplicates[:LISTED_LINES].tolist(),
        "rows_leaked": len(choice.leaked),
        "leaked_lines": choice.leaked[:LISTED_LINES].tolist(),
        "rows_untrained": refused["nothing_trained"],
        "untrained_lines": [refusal.line for refusal in refusals if refusal.code == "nothing_trained"][:LISTED_LINES],
        **counts_of(training),
        "packed_rows": packed_rows,
        "validation": counts_of(validation) if len(validation.documents) else None,
        "chat_template": None if found.form == "text" else training.encoder.facts(),
        "max_seq_length": training.max_seq_length,
        "long_rows": training.policy,
    }


def counts_of(side: Encoding) -> dict[str, Any]:
    tokens = side.documents.tokens
    facts: dict[str, Any] = {
        "rows_used": side.counts["used"],
        "documents": len(side.documents),
        "tokens": tokens,
        "trained_tokens": side.documents.trained_tokens,
        "trained_share": round(side.documents.trained_tokens / tokens, 4) if tokens else None,
        "tokens_lost": side.counts["tokens_lost"],
        "tokens_per_document": spread_of(side.documents.lengths),
    }
    for name in ("cut", "split", "dropped", "unrolled"):
        facts |= {f"rows_{name}": side.counts[name], f"{name}_lines": side.lines.get(name, [])}
    return facts


def spread_of(lengths: array) -> dict[str, Any] | None:
    if not lengths:
        return None
    values = np.frombuffer(lengths, dtype=np.int64)
    median, most = np.percentile(values, (50, 95), method="lower").tolist()
    return {
        "min": int(values.min()),
        "median": median,
        "p95": most,
        "max": int(values.max()),
        "mean": round(float(values.mean()), 1),
    }


def hash_tokenizer(folder: Path) -> str:
    """SHA-256 over the files that decide how texts become tokens."""
    digest = hashlib.sha256()
    patterns = (
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template*",
        "generation_config.json",
        "*.model",
    )
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
