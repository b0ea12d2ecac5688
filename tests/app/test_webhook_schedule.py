from datetime import UTC, datetime
from itertools import takewhile

import pytest

from app.webhooks.schedule import LONGEST_WISH_SECONDS, pause_after, read_retry_after

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_pauses_grow_and_end_after_about_a_day(chance):
    pauses = list(takewhile(lambda pause: pause is not None, (pause_after(tries, chance) for tries in range(1, 99))))
    assert pauses == sorted(pauses)
    assert pauses[0] < 10
    assert 20 <= sum(pauses) / 3600 <= 30
    assert pause_after(len(pauses) + 1, chance, 60.0) is None


def test_chance_spreads_what_failed_together():
    assert pause_after(3, 0.0) < pause_after(3, 0.5) < pause_after(3, 1.0) < pause_after(4, 0.0)


@pytest.mark.parametrize(("wish", "seconds"), [(None, 5), (0, 5), (1.0, 5), (90.0, 90), (1e9, LONGEST_WISH_SECONDS)])
def test_a_receiver_may_ask_for_more_time_within_bounds(wish, seconds):
    assert pause_after(1, 0.0, wish) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None), ("", None), ("soon", None), ("-5", None), ("1.5", None), ("²", None), ("120", 120.0),
        ("9" * 99, 999999999.0),
        ("Sun, 22 Nov 2026 12:01:00 GMT", 60.0), ("Sun, 22 Nov 2026 12:01:00", 60.0), ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        ("Sun, 99 Nov 2026 12:01:00 GMT", None),
    ],
)  # fmt: skip
def test_both_forms_of_retry_after_are_read(text, seconds):
    assert read_retry_after(text, NOON) == seconds
