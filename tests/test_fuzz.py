"""A short round of bench/fuzz.py: three callers, every operation of the published schema."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import fuzz

SECONDS = 35


@pytest.mark.timeout(180)
def test_no_answer_is_a_surprise(tmp_path: Path) -> None:
    cases, bad = fuzz.run_round(tmp_path, SECONDS, seed=1)
    assert not bad, "\n".join(path.read_text() for path in bad)
    assert all(cases.values())
