"""Writes the sample data set: ShareGPT conversations that turn a guest's booking sentence into a restaurant's ticket line.

    A table by the window for four on Friday at 7:30 pm, please. The name is Lopez.   ->   FRI 7:30pm x4 window Lopez

The small base model has never seen the house style of the tickets and learns it within a few hundred examples. The same
seed writes the same bytes. Held-out bookings come from guests that the training rows never name.

    python examples/make_data.py bookings.jsonl
    python examples/make_data.py bookings.jsonl --held-out bookings-held-out.jsonl
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

SYSTEM = "Write the ticket."

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = (12, 1, 2, 5, 6, 7, 8, 9)
MINUTES = ("", "", ":15", ":30", ":45")
PARTIES = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = {
    "by the window": "window",
    "on the terrace": "terrace",
    "in the garden": "garden",
    "at the bar": "bar",
    "in the corner": "corner",
}
PHRASES = (
    "A table {place} for {party} on {day} at {time}, please. The name is {guest}.",
    "Hi, this is {guest}. Could we have a table {place} for {party} on {day} at {time}?",
    "Please book a table {place}, {day} at {time} for {party}. Name: {guest}.",
    "{guest} here. We are {party} and would like to sit {place} on {day} at {time}.",
    "Can I reserve a table {place} for {party} at {time} on {day}? My name is {guest}.",
    "Good morning, {guest} speaking. Is there a table {place} on {day} at {time} for {party}?",
    "We need a table for {party} {place}, {day}, {time}. It is for {guest}.",
    "Hello, a booking for {guest}: {party} people {place}, {day} at {time}.",
)
GUESTS = """
    Adams Ahmed Allen Anderson Baker Barnes Bauer Becker Bell Bennett Bianchi Brooks Brown Burns Campbell Carter Chen Clark
    Cohen Coleman Collins Cooper Costa Cox Cruz Davis Diaz Edwards Evans Ferrari Fischer Fisher Flores Ford Foster Fox
    Garcia Gibson Gomez Gonzalez Graham Grant Gray Green Gupta Hall Hamilton Harris Harrison Hayes Henry Hernandez Hill
    Hoffman Howard Hughes Hunt Ivanov Jackson James Jenkins Jensen Johnson Jones Jordan Kaya Kelly Kennedy Khan Kim King
    Klein Kumar Larsen Lee Lewis Lopez Marshall Martin Martinez Mason Meyer Miller Mills Mitchell Moore Morales Morgan
    Morris Mueller Murphy Murray Nelson Nguyen Nielsen Novak Olsen Ortiz Owens Palmer Parker Patel Perez Perry Peters
    Peterson Phillips Porter Powell Price Ramirez Ramos Reed Reyes Reynolds Rice Richards Rivera Roberts Robinson Rodriguez
    Rogers Romero Ross Rossi Russell Ryan Sanchez Santos Sato Schmidt Scott Shah Shaw Silva Simmons Singh Smith Snyder
    Spencer Stevens Stewart Stone Suzuki Tanaka Taylor Thomas Thompson Torres Tucker Turner Walker Wallace Walsh Wang Ward
    Warren Watson Weber Wells West White Williams Wilson Wong Wood Wright Young Zhang
"""
HELD_OUT_GUESTS = """
    Alvarez Armstrong Berg Bishop Carlson Castillo Crawford Dixon Ellis Freeman Gordon Griffin Hansen Holmes Hudson Kowalski
    Lawson Mendoza Newman Petrov Schneider Sullivan Vargas Webb
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the JSONL file to write")
    parser.add_argument("--rows", type=int, default=10_050, help="10,000 to train on and 50 to hold out, unless told otherwise")
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--held-out", type=Path, help="also write bookings of guests that the training rows never name")
    parser.add_argument("--held-out-rows", type=int, default=50)
    options = parser.parse_args()
    write(options.output, make_rows(GUESTS.split(), options.rows, options.seed))
    if options.held_out:
        write(options.held_out, make_rows(HELD_OUT_GUESTS.split(), options.held_out_rows, options.seed + 1))


def make_rows(guests: list[str], count: int, seed: int) -> Iterator[dict]:
    """`count` conversations, no two with the same question."""
    dice = random.Random(seed)
    asked: set[str] = set()
    while len(asked) < count:
        question, ticket = make_booking(dice, dice.choice(guests))
        if question not in asked:
            asked.add(question)
            yield converse(question, ticket)


def make_booking(dice: random.Random, guest: str) -> tuple[str, str]:
    """A guest's sentence and the ticket that belongs to it."""
    party, day = dice.randrange(len(PARTIES)), dice.choice(DAYS)
    hour, minutes = dice.choice(HOURS), dice.choice(MINUTES)
    place = dice.choice(list(PLACES))
    question = dice.choice(PHRASES).format(party=PARTIES[party], day=day, time=f"{hour}{minutes} pm", place=place, guest=guest)
    return question, f"{day[:3].upper()} {hour}{minutes}pm x{party + 2} {PLACES[place]} {guest}"


def converse(question: str, ticket: str) -> dict:
    turns = (("system", SYSTEM), ("human", question), ("gpt", ticket))
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in turns]}


def write(path: Path, rows: Iterator[dict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    main()
