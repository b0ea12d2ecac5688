"""What a file is tried on: rows that were held out, or else rows that were trained on."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from app.jobs.spec import JobSpec
from app.jobs.states import Stage
from worker.data.formats import Sample
from worker.data.plan import Plan
from worker.data.readers import read_rows
from worker.data.surveys import Usable, normalise
from worker.stages import Inputs

HELD_OUT_CHATS = 16
TRAINED_CHATS = 8
PIECE_TOKENS = 128
MOST_PIECES = 64
WORK = 4e10
"""Weights times tokens: seconds on a CPU core or two for a small model, minutes for one of seven billion weights."""
FEWEST_TOKENS, MOST_TOKENS = 128, 2048
MOST_LOGITS = 1 << 26
"""Of one model, as float32: 256 MiB."""


def held_out_prompts(inputs: Inputs) -> list[dict[str, Any]]:
    """`prompt` and `prompt_ids` of each, see worker.stages.prepare."""
    path = inputs.folders[Stage.PREPARE] / "validation" / "samples.jsonl"
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, HELD_OUT_CHATS)]


def trained_samples(spec: JobSpec, inputs: Inputs) -> Iterator[Sample]:
    """The first rows of the uploaded file; none of a data set of the hub, which is not read again for that."""
    if inputs.file is None:
        return iter(())
    rows = normalise(read_rows(inputs.file, inputs.filename), inputs.values[Stage.PREPARE]["format"])
    return islice((row.sample for row in rows if isinstance(row, Usable)), TRAINED_CHATS)


def choose_documents(prepared: Path, weights: int, vocabulary: int) -> list[np.ndarray]:
    """The beginnings of documents that lie evenly over the plan, as int32 [n]: fewer for a larger model."""
    plan = Plan.open(prepared / "validation" if (prepared / "validation").exists() else prepared / "plan")
    budget = min(max(FEWEST_TOKENS, int(WORK / weights)), MOST_TOKENS, MOST_LOGITS // vocabulary)
    count = len(plan.document_offsets) - 1
    pieces: list[np.ndarray] = []
    longest = 0
    for index in np.unique(np.linspace(0, count - 1, min(count, MOST_PIECES)).astype(int)):
        start, end = plan.document_offsets[index : index + 2]
        piece = np.array(plan.input_ids[start : min(end, start + PIECE_TOKENS)])
        longest = max(longest, len(piece))
        if pieces and longest * (len(pieces) + 1) > budget:
            break
        pieces.append(piece)
    return pieces
