"""What an uploaded file holds, told without any tokenizer: its rows, their form, and which of them cannot be used."""

from array import array
from pathlib import Path
from typing import Any

from worker.data.readers import container_of, read_rows
from worker.data.surveys import LISTED_LINES, survey
from worker.stages import Inputs, Outcome, Report


def run(spec: None, inputs: Inputs, out: Path, report: Report) -> Outcome:
    """`values` is {"report": …}: rows (with the refused ones), rows_refused, refusals (the first 100), refused_by_code, format,
    container, columns, duplicates (rows equal to an earlier one) and the first of their lines; turns (None for plain text) and
    characters a usable row, {min, mean, max}, None without any.

    StageFailure dataset_invalid or dataset_empty for a file that holds no rows of a known form.
    """
    assert inputs.file is not None
    found = survey(read_rows(inputs.file, inputs.filename), form="auto", seed=0, report=report)
    summary = {
        "rows": found.rows,
        "rows_refused": found.refused,
        "refusals": [refusal._asdict() for refusal in found.refusals],
        "refused_by_code": dict(found.refused_by_code),
        "format": found.form,
        "container": container_of(inputs.file, inputs.filename),
        "columns": found.columns,
        "duplicates": len(found.duplicates),
        "duplicate_lines": found.duplicates[:LISTED_LINES].tolist(),
        "turns": None if found.form == "text" else spread_of(found.turns),
        "characters": spread_of(found.characters),
    }
    return Outcome({"report": summary})


def spread_of(numbers: array) -> dict[str, Any] | None:
    if not numbers:
        return None
    return {"min": min(numbers), "mean": round(sum(numbers) / len(numbers), 1), "max": max(numbers)}
