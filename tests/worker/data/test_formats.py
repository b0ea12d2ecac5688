import json
from pathlib import Path

import pytest
from format_samples import ANSWERED, ASKED, REFUSED, ROWS, SYSTEM

from app.jobs.spec import Dataset
from app.jobs.states import FailureCode
from worker.data.formats import FORMATS, detect, digest_of, normalise_row
from worker.data.formats.turns import Conversation, Preference
from worker.data.rows import CODES, RowRefused
from worker.stages import StageFailure


@pytest.mark.parametrize(("form", "fields", "sample"), [(form, *row) for form, rows in ROWS.items() for row in rows])
def test_rows_are_detected_and_normalised(form, fields, sample):
    before = json.dumps(fields)
    assert detect([fields]) == form
    assert normalise_row(fields, form) == sample
    assert json.dumps(fields) == before


def test_every_form_has_rows_in_this_test_and_a_name_in_the_spec():
    assert set(ROWS) == set(FORMATS)
    assert {*FORMATS, "auto"} == set(Dataset.model_fields["format"].annotation.__args__)


@pytest.mark.parametrize(("form", "fields", "code"), REFUSED)
def test_rows_that_cannot_be_trained_on_are_refused(form, fields, code):
    with pytest.raises(RowRefused) as refused:
        normalise_row(fields, form)
    assert refused.value.code == code
    assert refused.value.code in CODES
    refused.value.reason.encode()


def test_every_reason_to_refuse_is_documented():
    documented = Path("docs/errors.md").read_text()
    assert [code for code in CODES if f"`{code}`" not in documented] == []


def test_the_form_of_most_rows_wins():
    share, text = ROWS["sharegpt"][0][0], ROWS["text"][0][0]
    assert detect([text, share, share, {"other": 1}]) == "sharegpt"


def test_rows_of_no_known_form_are_named_by_their_columns():
    with pytest.raises(StageFailure, match=r"body, reply") as failure:
        detect([{"body": "x", "reply": "y"}])
    assert (failure.value.code, failure.value.param) == (FailureCode.DATASET_INVALID, "dataset.format")


def test_digests_tell_samples_apart():
    call = {"role": "assistant", "content": "So.", "tool_calls": [{"type": "function"}]}
    plain = Conversation([ASKED, ANSWERED])
    samples = [
        plain,
        Conversation([ANSWERED, ASKED]),
        Conversation([SYSTEM, ASKED, ANSWERED]),
        Conversation([ASKED, call]),
        Conversation([ASKED, ANSWERED], tools=[{"type": "function"}]),
        "Why?",
        "Why?So.",
        Preference(plain, Conversation([ASKED, call]), 1),
        Preference(Conversation([ASKED, call]), plain, 1),
    ]
    digests = [digest_of(sample) for sample in samples]
    assert len(set(digests)) == len(samples)
    assert digest_of(Conversation([dict(ASKED), dict(ANSWERED)], None, frozenset([1]))) == digests[0]
    assert digest_of(samples[0], seed=1) != digests[0]
