"""A small round of bench/fuzz.py: three callers, every operation of the published schema, all phases."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import fuzz

LEAST_CASES = 3000


@pytest.mark.timeout(900)
def test_no_answer_is_a_surprise(tmp_path: Path) -> None:
    cases, bad = fuzz.run_round(tmp_path, fuzz.Extent(examples=2, seed=1, large_bodies=False))
    assert not bad, "\n".join(path.read_text() for path in bad)
    assert all(cases.values())
    assert sum(cases.values()) >= LEAST_CASES, cases
