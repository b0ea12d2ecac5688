import pytest

from app.jobs.states import FailureCode
from worker.data.rows import Refusal, Row
from worker.data.surveys import LISTED_REFUSALS, choose, name_lines, survey
from worker.stages import StageFailure


def texts(*values):
    return [Row(line, {"text": value}) for line, value in enumerate(values, 1)]


def look(rows, seed=0):
    return survey(rows, form="auto", seed=seed)


def choose_values(values, *, seed=0, **options):
    choice = choose(look(texts(*values), seed), **{"max_samples": None, "validation_fraction": 0.0} | options)
    return [values[number] for number in choice.training], [values[number] for number in choice.validation], len(choice.leaked)


VALUES = [f"text {number}" for number in range(100)]


def test_a_survey_counts_and_keeps_the_first_refusals():
    rows = [
        *texts("a b", "a b", "c"),
        *[Refusal(line, "invalid_json", "Broken.") for line in range(4, 204)],
        Row(204, {"text": ""}),
    ]
    found = look(rows)
    assert (found.rows, found.usable, found.refused, found.duplicates.tolist()) == (204, 3, 201, [2])
    assert found.refused_by_code == {"invalid_json": 200, "empty_text": 1}
    assert len(found.refusals) == LISTED_REFUSALS
    assert (found.form, found.columns, list(found.characters)) == ("text", ["text"], [3, 3, 1])


def test_all_rows_are_taken_in_order_when_nothing_is_asked():
    assert choose_values(VALUES) == (VALUES, [], 0)


def test_the_seed_chooses_and_the_order_of_the_file_does_not():
    chosen, _, _ = choose_values(VALUES, max_samples=10)
    again, _, _ = choose_values(VALUES[::-1], max_samples=10)
    other, _, _ = choose_values(VALUES, max_samples=10, seed=1)
    assert len(chosen) == 10
    assert sorted(chosen) == sorted(again) != sorted(other)


def test_held_out_rows_are_taken_beside_the_samples():
    training, validation, _ = choose_values(VALUES, max_samples=50, validation_fraction=0.1)
    assert (len(training), len(validation)) == (50, 5)
    assert not set(training) & set(validation)
    training, validation, _ = choose_values(VALUES, validation_fraction=0.1)
    assert (len(training), len(validation)) == (90, 10)
    assert len(choose_values(VALUES[:5], validation_fraction=0.01)[1]) == 1
    assert choose_values(VALUES[:1], validation_fraction=0.5)[0] == VALUES[:1]


def test_equal_rows_never_lie_on_both_sides():
    values = [f"text {number % 10}" for number in range(100)]
    for seed in range(20):
        training, validation, left_out = choose_values(values, validation_fraction=0.15, seed=seed)
        assert not set(training) & set(validation)
        assert len(training) + len(validation) + left_out == 100
        assert len(validation) == 15


def test_without_rows_there_is_nothing_to_do():
    with pytest.raises(StageFailure) as failure:
        look([])
    assert failure.value.code == FailureCode.DATASET_EMPTY
    with pytest.raises(StageFailure, match=r"Line 3: Broken\.") as failure:
        look([Refusal(3, "invalid_json", "Broken.")])
    assert failure.value.code == FailureCode.DATASET_INVALID


def test_refusals_are_named_in_one_line():
    refusals = [Refusal(line, "no_answer", "No.") for line in (2, 5, 9)]
    assert name_lines(refusals) == "Line 2: No. Line 5: No. Line 9: No."
    assert name_lines(refusals, 40, listed=2) == "Line 2: No. Line 5: No. And 38 more."
