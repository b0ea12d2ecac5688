"""The short version of `make bench-chaos`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ml, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parent.parent
WANTED_ZERO = ("lost", "run twice", "stale writes", "orphans", "readable partial files", "other adapters", "other losses")


# Seed 239 draws twelve of the thirteen kinds of strike within its first thirteen, ten of them kills.
def test_ten_kills_lose_nothing(tmp_path: Path) -> None:
    ledger = tmp_path / "chaos.jsonl"
    command = [sys.executable, "bench/chaos", "--kills", "10", "--seed", "239", "--steps", "60", "--ledger", str(ledger)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1]) if done.stdout.endswith("}\n") else {}
    assert {name: result.get(name) for name in WANTED_ZERO} == dict.fromkeys(WANTED_ZERO, 0), done.stdout + done.stderr
    assert done.returncode == 0
    assert result["kills"] == 10
    assert len([line for line in ledger.read_text().splitlines() if json.loads(line)["kind"] == "strike"]) >= 10
