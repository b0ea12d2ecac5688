import pytest

from app.jobs.states import FailureCode
from worker.data.formats import FORMATS, detect, digest_of
from worker.data.rows import CODES, RowRefused
from worker.stages import StageFailure

ASKED = {"role": "user", "content": "Why?"}
ANSWERED = {"role": "assistant", "content": "So."}
SYSTEM = {"role": "system", "content": "Be brief."}

ROWS = {
    "sharegpt": [
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, [ASKED, ANSWERED]),
        (
            {
                "messages": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "user", "value": "Why?", "weight": None},
                    {"from": "assistant", "value": "So."},
                ]
            },
            [SYSTEM, ASKED, ANSWERED],
        ),
    ],
    "messages": [
        ({"messages": [ASKED, ANSWERED]}, [ASKED, ANSWERED]),
        ({"conversations": [SYSTEM | {"role": "developer"}, ASKED, ANSWERED], "tools": []}, [SYSTEM, ASKED, ANSWERED]),
    ],
    "alpaca": [
        ({"instruction": "Why?", "output": "So."}, [ASKED, ANSWERED]),
        ({"instruction": "Why?", "input": "", "output": "So.", "system": "Be brief."}, [SYSTEM, ASKED, ANSWERED]),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            [{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}],
        ),
    ],
    "text": [({"text": "Once upon a time", "id": 1}, "Once upon a time")],
}

REFUSED = [
    ("sharegpt", {"conversations": []}, "no_turns"),
    ("sharegpt", {"conversations": None}, "unknown_format"),
    ("sharegpt", {"text": "x"}, "unknown_format"),
    ("sharegpt", {"conversations": ["Why?"]}, "wrong_type"),
    ("sharegpt", {"conversations": [{"from": "human", "value": 3}]}, "wrong_type"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Why?"}]}, "no_answer"),
    ("sharegpt", {"conversations": [{"from": "gpt", "value": "So."}]}, "no_question"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": " \n"}]}, "empty_answer"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Why?"}, {"from": "function", "value": "x"}]}, "unknown_role"),
    ("messages", {"messages": [ASKED, ANSWERED | {"content": None}]}, "wrong_type"),
    ("messages", {"messages": [ASKED, ANSWERED | {"tool_calls": [{}]}]}, "unsupported_field"),
    ("messages", {"messages": [ASKED, ANSWERED | {"weight": 0}]}, "unsupported_field"),
    ("messages", {"messages": [ASKED, ANSWERED], "tools": [{"name": "x"}]}, "unsupported_field"),
    ("messages", {"messages": [ASKED, SYSTEM, ANSWERED]}, "misplaced_system"),
    ("messages", {"messages": [ASKED, ANSWERED, ASKED]}, "no_answer"),
    ("messages", {"messages": [ASKED, ANSWERED | {"content": "\ud800"}]}, "invalid_text"),
    ("alpaca", {"instruction": "Why?"}, "no_answer"),
    ("alpaca", {"output": "So."}, "unknown_format"),
    ("alpaca", {"instruction": "Why?", "output": ""}, "empty_answer"),
    ("alpaca", {"instruction": ["Why?"], "output": "So."}, "wrong_type"),
    ("text", {"text": "  "}, "empty_text"),
    ("text", {"text": 3}, "wrong_type"),
    ("text", {"body": "x"}, "unknown_format"),
    ("text", {"text": "\udcff"}, "invalid_text"),
]


@pytest.mark.parametrize(("form", "fields", "sample"), [(form, *row) for form, rows in ROWS.items() for row in rows])
def test_rows_are_detected_and_normalised(form, fields, sample):
    assert detect([fields]) == form
    assert FORMATS[form].normalise(fields) == sample


def test_every_form_has_rows_in_this_test():
    assert set(ROWS) == set(FORMATS)


@pytest.mark.parametrize(("form", "fields", "code"), REFUSED)
def test_rows_that_cannot_be_trained_on_are_refused(form, fields, code):
    with pytest.raises(RowRefused) as refused:
        FORMATS[form].normalise(fields)
    assert refused.value.code == code
    assert refused.value.code in CODES
    refused.value.reason.encode()


def test_the_form_of_most_rows_wins():
    share, text = ROWS["sharegpt"][0][0], ROWS["text"][0][0]
    assert detect([text, share, share, {"other": 1}]) == "sharegpt"


def test_rows_of_no_known_form_are_named_by_their_columns():
    with pytest.raises(StageFailure, match=r"question, reply") as failure:
        detect([{"question": "x", "reply": "y"}])
    assert (failure.value.code, failure.value.param) == (FailureCode.DATASET_INVALID, "dataset.format")


def test_digests_tell_samples_apart():
    samples = [[ASKED, ANSWERED], [ANSWERED, ASKED], [SYSTEM, ASKED, ANSWERED], "Why?", "Why?So."]
    digests = [digest_of(sample) for sample in samples]
    assert len(set(digests)) == len(samples)
    assert digest_of([dict(ASKED), dict(ANSWERED)]) == digests[0] != digest_of(samples[0], seed=1)
