from concurrent.futures import ThreadPoolExecutor

import pytest

from app import ids
from app.ids import new_id


@pytest.mark.parametrize("tick", [0, -1], ids=["in one moment", "while the clock is set back"])
def test_later_ids_sort_after_earlier_ones(monkeypatch: pytest.MonkeyPatch, tick: int) -> None:
    moments = iter(range(2 * 10**18, 0, tick * 10**9 or -1))
    monkeypatch.setattr(ids, "_last", 0)
    monkeypatch.setattr("app.ids.time.time_ns", lambda: next(moments))
    made = [new_id("job_") for _ in range(1000)]
    assert made == sorted(set(made))
    assert {len(id) for id in made} == {len("job_") + 26}


def test_threads_make_no_id_twice() -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: new_id("evt_"), range(4000)))
    assert len(set(made)) == 4000
