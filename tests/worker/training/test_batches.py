from collections import Counter

import numpy as np
import pytest
import torch
from tiny_run import random_documents, save_plan

from app.jobs.spec import Training, count_steps
from worker.data.plan import Document, Plan
from worker.training.batches import RowOrder, collate, count_rows


def plan_of(folder, documents, **options) -> Plan:
    return Plan.open(save_plan(folder / "plan", documents, **options))


def test_sources_predict_targets_and_no_document_predicts_the_next(tmp_path):
    first, second = Document([5, 6, 7], [True] * 3), Document([8, 9], [True] * 2)
    plan = plan_of(tmp_path, [first, second, Document([1, 2, 3, 4, 5, 6, 7], [False] * 3 + [True] * 4)], max_seq_length=7)
    batch = collate([plan.row(index) for index in range(plan.rows)])
    pairs = list(zip(batch["input_ids"].flatten()[batch["sources"]].tolist(), batch["targets"].tolist(), strict=True))
    assert sorted(pairs) == sorted([(5, 6), (6, 7), (8, 9), (3, 4), (4, 5), (5, 6), (6, 7)])
    assert batch["tokens"] == 12
    assert batch["rows"] == 2


def test_a_batch_is_no_wider_than_its_last_predicting_token(tmp_path):
    trained_to_4 = Document([1, 2, 3, 4, 5, 6], [False, False, True, True, False, False])
    plan = plan_of(tmp_path, [trained_to_4, Document([7, 8], [False, True])], packing=False)
    batch = collate([plan.row(0), plan.row(1)])
    assert batch["input_ids"].shape == (2, 3)
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 1, 2]]  # padding counts on: no second document, no mask


def test_rows_without_targets_collate(tmp_path):
    plan = plan_of(tmp_path, [Document([1, 2, 3], [False] * 3)], packing=False)
    batch = collate([plan.row(0)])
    assert batch["targets"].dtype == torch.int64
    assert len(batch["targets"]) == len(batch["sources"]) == 0


@pytest.mark.parametrize(("epochs", "batch_size", "accumulation"), [(1, 2, 4), (3, 2, 4), (2.5, 3, 2), (0.01, 2, 4)])
def test_epochs_lose_and_repeat_no_row(tmp_path, epochs, batch_size, accumulation):
    plan = plan_of(tmp_path, random_documents(13), packing=False)
    training = Training(epochs=epochs, batch_size=batch_size, gradient_accumulation=accumulation)
    order = list(RowOrder(plan, batch_size, count_rows(plan.rows, training)))
    seen = Counter(index for batch in order for index in batch)
    assert sum(seen.values()) == max(1, int(13 * epochs))
    assert max(seen.values()) - min(seen[index] for index in range(13)) <= 1
    assert all(len(batch) == batch_size for batch in order[:-1])
    assert -(-len(order) // accumulation) == count_steps(plan.rows, training)


def test_max_steps_are_full_steps_over_as_many_epochs_as_it_takes(tmp_path):
    plan = plan_of(tmp_path, random_documents(5), packing=False)
    order = list(RowOrder(plan, 2, count_rows(plan.rows, Training(max_steps=3))))
    assert [len(batch) for batch in order] == [2] * 12
    flat = np.concatenate(order)
    assert flat[:5].tolist() == plan.epoch_order(0).tolist()
    assert flat[5:10].tolist() == plan.epoch_order(1).tolist()
