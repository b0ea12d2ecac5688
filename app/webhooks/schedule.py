"""When a delivery that failed is tried again."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

PAUSES_SECONDS = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 21600, 36000)
"""After the first, the second … attempt; together a little under a day."""
JITTER = 0.2
LONGEST_WISH_SECONDS = 6 * 3600
"""What a receiver asks for in Retry-After counts up to this."""


def pause_after(tries: int, chance: float, wish: float | None = None) -> float | None:
    """Seconds from the failure of attempt number `tries` to the next; None after the last.

    `chance`, from 0 to 1, spreads them over a fifth above the plan, so that what failed together does not come back together.
    `wish` is the receiver's, which may lengthen a pause and never shortens one.
    """
    if tries > len(PAUSES_SECONDS):
        return None
    planned = PAUSES_SECONDS[tries - 1] * (1 + JITTER * chance)
    return max(planned, min(wish or 0.0, LONGEST_WISH_SECONDS))


def read_retry_after(text: str | None, now: datetime) -> float | None:
    """Seconds from `now`, of a Retry-After header in either of its forms; None for anything else."""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        time = parsedate_to_datetime(text)
    except ValueError:
        return None
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return max(0.0, (aware - now).total_seconds())
