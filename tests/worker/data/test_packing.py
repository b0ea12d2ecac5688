import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.data.packing import pack


def test_the_fullest_row_with_room_is_taken():
    # 7 and 6 open a row each, with 3 and 4 left; 3 fits both and goes where it leaves nothing.
    assert pack([3, 6, 7], 10) == [[2, 0], [1]]


@given(st.lists(st.integers(1, 64), max_size=200))
def test_every_document_is_in_one_row_and_no_row_is_too_long(lengths):
    rows = pack(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= 64 for row in rows)
    # At most one row can be half empty: best fit never opens a row that a half-empty one could have held.
    assert sum(sum(lengths[index] for index in row) <= 32 for row in rows) <= 1


def test_equal_input_gives_equal_rows():
    lengths = [random.Random(1).randint(1, 100) for _ in range(1000)]
    assert pack(lengths, 128) == pack(list(lengths), 128)


def test_rows_are_nearly_full_and_made_quickly():
    draw = random.Random(2)
    lengths = [min(2048, int(draw.lognormvariate(5.5, 1.0)) + 1) for _ in range(100_000)]
    start = time.process_time()
    rows = pack(lengths, 2048)
    assert time.process_time() - start < 5
    assert sum(lengths) / (2048 * len(rows)) > 0.99


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="11 tokens"):
        pack([3, 11], 10)
