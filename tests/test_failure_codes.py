"""Every failure code of the contract is there because something real causes it."""

import re
from pathlib import Path

from app.jobs.states import FailureCode

TESTS = Path(__file__).parent
MARK = re.compile(r"^@pytest\.mark\.provokes\(([^)]*)\)", re.M)


def test_every_failure_code_has_a_test_that_provokes_it():
    marked = [codes for path in TESTS.rglob("test_*.py") for codes in MARK.findall(path.read_text())]
    provoked = {code for codes in marked for code in re.findall(r"\w+", codes)}
    assert provoked <= set(FailureCode), "a code that there is not"
    assert sorted(set(FailureCode) - provoked) == []
