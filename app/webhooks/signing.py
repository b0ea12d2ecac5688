"""Signatures after Standard Webhooks: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`."""

import binascii
import secrets
from base64 import b64decode, b64encode
from collections.abc import Sequence
from datetime import datetime

from standardwebhooks import Webhook

PREFIX = "whsec_"
KEY_BYTES = 32
SHORTEST_KEY, LONGEST_KEY = 24, 64
"""In bytes, as the specification has it."""


def make_secret() -> str:
    return PREFIX + b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def hint_at(secret: str) -> str:
    """Enough to tell one secret from another."""
    return f"{PREFIX}…{secret[-4:]}"


def is_secret(text: str) -> bool:
    """`whsec_` and 24 to 64 bytes in base64: what every library for receivers reads the same way."""
    try:
        return text.startswith(PREFIX) and SHORTEST_KEY <= len(b64decode(text[len(PREFIX) :], validate=True)) <= LONGEST_KEY
    except (binascii.Error, ValueError):
        return False


def sign(message_id: str, time: datetime, body: bytes, keys: Sequence[str]) -> dict[str, str]:
    """The three headers; one signature for each of `keys`. `time` is aware, in UTC."""
    signatures = [Webhook(key).sign(message_id, time, body.decode()) for key in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(time.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
