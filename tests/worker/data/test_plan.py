import numpy as np
import pytest

from worker.data.plan import Document, Plan, write_plan
from worker.data.spool import Spool


def documents_of(*lengths):
    """Documents whose ids tell which document (hundreds) and which token (units) they are; all but the first are trained."""
    return [Document([100 * n + i for i in range(length)], [True] * length) for n, length in enumerate(lengths, 1)]


def write(folder, documents, **options):
    spool = Spool.of(folder.with_suffix(".spool"), documents)
    facts = write_plan(folder, spool, **{"max_seq_length": 8, "packing": True, "seed": 1} | options)
    return facts, Plan.open(folder)


def test_rows_keep_documents_apart(tmp_path):
    facts, plan = write(tmp_path / "plan", documents_of(3, 8, 5))
    assert (facts["rows"], facts["documents"], facts["tokens"], facts["trained_tokens"]) == (2, 3, 16, 13)
    whole, shared = plan.row(0), plan.row(1)
    assert whole.input_ids.tolist() == [200, 201, 202, 203, 204, 205, 206, 207]
    assert shared.input_ids.tolist() == [300, 301, 302, 303, 304, 100, 101, 102]
    assert shared.labels.tolist() == [-100, 301, 302, 303, 304, -100, 101, 102]
    assert shared.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert {array.dtype for array in shared} == {np.dtype(np.int32)}


def test_labels_follow_the_mask(tmp_path):
    _, plan = write(tmp_path / "plan", [Document([7, 8, 9], [True, False, True])])
    assert plan.row(0).labels.tolist() == [-100, -100, 9]


def test_without_packing_each_document_is_a_row_in_order(tmp_path):
    facts, plan = write(tmp_path / "plan", documents_of(1, 3, 2), packing=False)
    assert facts["rows"] == plan.rows == 3
    assert [len(plan.row(index).input_ids) for index in range(3)] == [1, 3, 2]


def test_epochs_are_shuffled_differently_and_repeatably(tmp_path):
    _, plan = write(tmp_path / "plan", documents_of(*[4] * 50), packing=False)
    first, second = plan.epoch_order(0), plan.epoch_order(1)
    assert first.dtype == np.int64
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() != list(range(50))
    assert first.tolist() != second.tolist()
    assert Plan.open(tmp_path / "plan").epoch_order(0).tolist() == first.tolist()
    _, other = write(tmp_path / "other", documents_of(*[4] * 50), packing=False, seed=2)
    assert other.epoch_order(0).tolist() != first.tolist()


def test_an_epoch_order_never_changes(tmp_path):
    """A job that is resumed after an upgrade must go on in the same order."""
    _, plan = write(tmp_path / "plan", documents_of(*[1] * 8), packing=False, seed=3407)
    assert plan.epoch_order(0).tolist() == [5, 6, 1, 7, 4, 0, 3, 2]


def test_the_hash_is_of_the_content(tmp_path):
    first, _ = write(tmp_path / "a", documents_of(3, 5))
    again, _ = write(tmp_path / "b", documents_of(3, 5))
    other, _ = write(tmp_path / "c", [Document([1, 2], [True, True])])
    assert first == again
    assert first["sha256"] != other["sha256"]


def test_a_plan_without_documents_has_no_rows(tmp_path):
    facts, plan = write(tmp_path / "plan", [])
    assert facts["rows"] == plan.rows == len(plan.epoch_order(0)) == 0


@pytest.mark.parametrize("length", [0, 9])
def test_documents_that_fit_no_row_are_refused(tmp_path, length):
    with pytest.raises(ValueError, match="1 to 8 tokens"):
        write(tmp_path / "plan", [Document([1] * length, [True] * length)])


def test_rows_outside_the_plan_are_an_index_error(tmp_path):
    _, plan = write(tmp_path / "plan", documents_of(3))
    for index in (-1, 1):
        with pytest.raises(IndexError):
            plan.row(index)


def test_pairs_share_a_row(tmp_path):
    facts, plan = write(tmp_path / "plan", documents_of(3, 8, 5, 4), pairs=True)
    assert (facts["pairs"], facts["packing"], facts["rows"], facts["documents"]) == (True, False, 2, 4)
    first, second = plan.row(0), plan.row(1)
    assert first.input_ids.tolist() == [*range(100, 103), *range(200, 208)]
    assert first.position_ids.tolist() == [*range(3), *range(8)]
    assert second.input_ids.tolist() == [*range(300, 305), *range(400, 404)]


def test_documents_are_counted_without_a_folder(tmp_path):
    spool = Spool.of(None, documents_of(3, 8))
    assert (len(spool), spool.tokens, spool.trained_tokens, list(spool.lengths)) == (2, 11, 9, [3, 8])
    kept = Spool.of(tmp_path / "spool", documents_of(3, 8))
    kept.remove()
    assert list(tmp_path.iterdir()) == []
