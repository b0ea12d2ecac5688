"""Reads a JSON array element by element, so that a file of any size needs the memory of its largest row."""

import json
from collections.abc import Iterator
from typing import Any, TextIO

from worker.data.rows import RowRefused

CHUNK_CHARACTERS = 1 << 20
BETWEEN = " \t\r\n,"


def read_elements(file: TextIO, longest: int) -> Iterator[Any | RowRefused]:
    """The elements of the array whose opening bracket was just read.

    Where the text is broken, or an element has more than `longest` characters, the last thing given is a RowRefused: what
    follows cannot be told apart.
    """
    decoder = json.JSONDecoder()
    text, position, ended = "", 0, False
    wanted = CHUNK_CHARACTERS
    while True:
        while position < len(text) and text[position] in BETWEEN:
            position += 1
        if text[position : position + 1] == "]":
            return
        try:
            element, end = decoder.raw_decode(text, position)
            whole = end < len(text)
        except (ValueError, RecursionError):
            whole = False
        if whole:
            yield element
            position, wanted = end, CHUNK_CHARACTERS
        elif ended or len(text) - position > longest:
            yield RowRefused("invalid_json", "The JSON array is broken here; the rest of the file cannot be read.")
            return
        else:
            more = file.read(wanted)
            text, position, ended = text[position:] + more, 0, not more
            wanted *= 2
