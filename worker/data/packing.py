"""Which documents share a row."""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Best-fit decreasing (Johnson, 1973): the longest document first, each into the fullest row that still has room.

    `lengths` are tokens per document, `capacity` the tokens of a row. Returns the documents' indices by row, rows in the
    order in which they were opened. The same input gives the same rows. A document longer than a row is a ValueError.

    Finding a row is one binary search over the distinct amounts of room left, so n documents cost O(n log n).
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and lengths.max() > capacity:
        raise ValueError(f"a document of {lengths.max()} tokens does not fit in a row of {capacity}")
    rows: list[list[int]] = []
    rows_by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for document in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[document])
        position = bisect_left(rooms, length)
        if position == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[position]
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                del rows_by_room[room], rooms[position]
        rows[row].append(document)
        left = room - length
        if left in rows_by_room:
            rows_by_room[left].append(row)
        elif left:
            rows_by_room[left] = [row]
            insort(rooms, left)
    return rows
