"""Ids: a prefix and 26 characters of Crockford base 32, sortable by time (48 bits of milliseconds, 80 random bits)."""

import secrets
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """`new_id("job_")` is `job_` followed by 26 characters; later ids sort after earlier ones."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return prefix + "".join(ALPHABET[number >> shift & 31] for shift in range(125, -5, -5))
