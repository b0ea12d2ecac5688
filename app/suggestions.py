"""The nearest known name, for whoever mistyped one."""

from collections.abc import Collection
from difflib import get_close_matches


def suggest(name: str, known: Collection[str]) -> str:
    """`did you mean 'x'?` when one is near, else the list of what is known."""
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known)}." if known else "there are none."
