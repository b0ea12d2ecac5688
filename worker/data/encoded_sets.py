"""A spec's data set, read, chosen and encoded: what `prepare` packs and `measure` counts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.jobs.spec import JobSpec
from app.jobs.states import FailureCode
from worker.data.base_models import BaseModel
from worker.data.encoding import TRAINING, VALIDATION, Encoding, encode_rows
from worker.data.masks import Encoder
from worker.data.readers import read_rows
from worker.data.rows import Refusal, Row
from worker.data.spool import Spool
from worker.data.surveys import Choice, Survey, choose, name_lines, normalise, survey
from worker.data.tokenizer import eos_token_ids, load_tokenizer
from worker.stages import Inputs, Report, StageFailure

Reader = Callable[[], Iterator[Row | Refusal]]


@dataclass(frozen=True)
class EncodedSet:
    """`found` is the survey of the rows to train on; `questions` are held-out prompts, see worker.data.encoding."""

    found: Survey
    choice: Choice
    training: Encoding
    validation: Encoding
    questions: list[dict[str, Any]]


def encode_set(
    spec: JobSpec,
    inputs: Inputs,
    model: BaseModel,
    report: Report,
    *,
    spools: Path | None,
    on_survey: Callable[[Survey], None] = lambda found: None,
) -> EncodedSet:
    """The documents stay on disk in two folders under `spools`, or are only counted. `on_survey` may stop before the tokenizer
    has any work. StageFailure for what cannot be read or held out."""
    read = open_rows(spec, inputs, report)
    found = survey(read(), form=spec.dataset.format, seed=spec.dataset.seed, report=report)
    on_survey(found)
    apart = survey_validation(spec, inputs, found, report)
    choice = choose(
        found,
        max_samples=spec.dataset.max_samples,
        validation_fraction=spec.dataset.validation_fraction,
        held_out=apart,
    )
    encoder = make_encoder(model, spec)
    training, validation = (
        Encoding(encoder, spec.training.max_seq_length, spec.dataset.long_rows, Spool(spools / name if spools else None))
        for name in ("training.spool", "validation.spool")
    )
    encode = partial(encode_rows, training=training, validation=validation, prompts=spec.evaluation.samples, report=report)
    questions = encode(normalise(read(), found.form), sides_of(choice))
    if apart:
        rows = normalise(read_rows(*validation_file(inputs)), apart.form)
        questions = encode(rows, np.full(apart.usable, VALIDATION, dtype=np.uint8))
    return EncodedSet(found, choice, training, validation, questions)


def make_encoder(model: BaseModel, spec: JobSpec) -> Encoder:
    tokenizer = load_tokenizer(model.path)
    eos = eos_token_ids(model.path, tokenizer)
    learned: dict[str, bool] = {"assistant_only": spec.training.assistant_only_loss, "whole": spec.method == "cpt"}
    return Encoder(tokenizer, eos_token_ids=eos, **learned)


def open_rows(spec: JobSpec, inputs: Inputs, report: Report) -> Reader:
    """A function that reads the data set from its start each time."""
    if spec.dataset.hub is None:
        assert inputs.file is not None
        return partial(read_rows, inputs.file, inputs.filename)
    from worker.data.hub_datasets import open_hub_dataset

    token = inputs.secret(spec.hub_token)
    read, commit = open_hub_dataset(spec.dataset.hub, cache_dir=inputs.cache_dir, token=token, report=report)
    report("resolved", spec={"dataset": {"hub": {"revision": commit}}})
    return read


def validation_file(inputs: Inputs) -> tuple[Path, str | None]:
    assert inputs.validation_file is not None
    return inputs.validation_file, inputs.validation_filename


def survey_validation(spec: JobSpec, inputs: Inputs, found: Survey, report: Report) -> Survey | None:
    """The rows of the spec's own validation file, None without one. All of them must be usable: they are few, and chosen."""
    if spec.dataset.validation_file is None:
        return None
    try:
        apart = survey(read_rows(*validation_file(inputs)), form=found.form, seed=spec.dataset.seed, report=report)
    except StageFailure as failure:
        failure.param = "dataset.validation_file"
        raise
    if apart.refused:
        raise refused_validation(apart)
    return apart


def refused_validation(apart: Survey) -> StageFailure:
    message = f"{apart.refused} of {apart.rows} validation rows cannot be used as {apart.form}."
    named = name_lines(apart.refusals, apart.refused)
    hint = "Correct these rows; the validation file must have the form of the data set."
    return StageFailure(FailureCode.DATASET_INVALID, f"{message} {named}", hint=hint, param="dataset.validation_file")


def sides_of(choice: Choice) -> np.ndarray:
    """uint8, up to the last usable row that is on a side."""
    last = max((int(numbers[-1]) for numbers in (choice.training, choice.validation) if len(numbers)), default=-1)
    sides = np.zeros(last + 1, dtype=np.uint8)
    sides[choice.training], sides[choice.validation] = TRAINING, VALIDATION
    return sides
