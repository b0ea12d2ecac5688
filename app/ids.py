"""Ids: a prefix and 26 characters of Crockford base 32, sortable by time (48 bits of milliseconds, 80 random bits)."""

import secrets
import threading
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """`new_id("job_")` is `job_` followed by 26 characters. Later ids sort after earlier ones; those of one process also within
    a millisecond, and when its clock is set back."""
    global _last
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    with _lock:
        if number <= _last:
            number = _last + 1 + secrets.randbits(64)
        _last = number
    return prefix + "".join(ALPHABET[number >> shift & 31] for shift in range(125, -5, -5))
