"""Keeps secrets out of what a stage says: libraries put tokens into messages, URLs and tracebacks.

Only what passes through Python is masked. Programs that a stage starts are given no secrets.
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

MASK = "[secret]"
SHORTEST = 8
"""A shorter value hides nothing, and would be found in ordinary words."""


class Mask:
    """`mask(data)` is the text, or the JSON data with its texts, without the secrets, as they are or as URLs write them."""

    def __init__(self, secrets: Iterable[str] = ()):
        forms = {form for secret in secrets if len(secret) >= SHORTEST for form in (secret, quote(secret, safe=""))}
        self._forms = sorted(forms, key=len, reverse=True)

    def __call__(self, data: Any) -> Any:
        if isinstance(data, str):
            for form in self._forms:
                data = data.replace(form, MASK)
        elif isinstance(data, dict):
            data = {key: self(value) for key, value in data.items()}
        elif isinstance(data, list | tuple):
            data = [self(value) for value in data]
        return data


class MaskedStream:
    """A text stream that masks what is written to it, write by write."""

    def __init__(self, stream: Any, mask: Mask):
        self._stream, self._mask = stream, mask

    def write(self, text: str) -> int:
        self._stream.write(self._mask(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
