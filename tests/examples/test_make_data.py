"""The sample data: the same bytes for the same seed, rows that our own reader takes, tickets that say what the guest said."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from worker.data.formats import FORMATS, detect

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "make_data.py"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TICKET = re.compile(r"([A-Z]{3}) (\d+(?::\d\d)?)pm x(\d) (window|terrace|garden|bar|corner) (\w+)")


def make(folder, *options):
    """Runs the script with the standard library alone."""
    path = folder / "bookings.jsonl"
    subprocess.run([sys.executable, "-I", "-S", SCRIPT, path, *options], check=True)
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def turns(row):
    return [turn["value"] for turn in row["conversations"]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    path = make(folder, "--held-out", folder / "held-out.jsonl")
    return read(path), read(folder / "held-out.jsonl")


def test_the_same_seed_writes_the_same_bytes_and_another_others(tmp_path):
    first, again, other = (make(tmp_path, "--rows", "200", "--seed", seed).read_bytes() for seed in ("1", "1", "2"))
    assert first == again != other


def test_there_are_ten_thousand_rows_and_fifty_to_hold_out_no_two_alike(rows):
    questions = [turns(row)[1] for row in rows[0]]
    assert len(questions) == len(set(questions)) == 10_050


def test_our_reader_takes_every_row(rows):
    assert detect(rows[0][:100]) == "sharegpt"
    for row in rows[0] + rows[1]:
        roles = [turn["role"] for turn in FORMATS["sharegpt"].normalise(row).turns]
        assert roles == ["system", "user", "assistant"]


def test_a_ticket_says_what_the_guest_said(rows):
    for row in rows[0]:
        _, question, ticket = turns(row)
        day, time, party, place, guest = TICKET.fullmatch(ticket).groups()
        assert re.search(rf"\b{day}[a-z]*day\b", question, re.I)
        assert f" {time} pm" in question
        assert re.search(rf"\b{NUMBERS[int(party)]}\b", question)
        assert re.search(rf"\b{guest}\b", question)
        assert re.search(rf" (by|on|in|at) the {place}\b", question)


def test_held_out_guests_are_strangers_to_the_training_rows(rows):
    known = {TICKET.fullmatch(turns(row)[2])[5] for row in rows[0]}
    strangers = {TICKET.fullmatch(turns(row)[2])[5] for row in rows[1]}
    assert len(rows[1]) == 50
    assert known & strangers == set()
