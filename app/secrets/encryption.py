"""The keys that secrets are encrypted with: TUNESMITH_SECRET_KEY, or a file of the data folder that the first start makes.

A key is 32 random bytes in base64. Of several, separated by commas, the first encrypts and all decrypt, so that a new key can
be put in front of the old one.
"""

import os
import secrets
from base64 import urlsafe_b64encode
from pathlib import Path

from cryptography.fernet import Fernet, MultiFernet

from app.settings import Settings, is_key

KEY_FILE = "secret.key"


class UnsafeKey(Exception):
    """The key file can be read by others, or holds no key."""


def open_keys(settings: Settings) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in load_keys(settings)])


def load_keys(settings: Settings) -> list[str]:
    """Makes the key file where there is neither a setting nor a file. UnsafeKey: see there."""
    if settings.secret_key is not None:
        return [key.strip() for key in settings.secret_key.get_secret_value().split(",")]
    path = settings.root / KEY_FILE
    if not path.exists():
        make_key_file(path)
    return [read_key_file(path)]


def read_key_file(path: Path) -> str:
    if path.stat().st_mode & 0o077:
        raise UnsafeKey(
            f"{path} can be read by others than its owner; everything that it encrypts is open to them. chmod 600 it."
        )
    key = path.read_text().strip()
    if not is_key(key):
        raise UnsafeKey(f"{path} does not hold 32 bytes in base64. Put it back from a backup.")
    return key


def make_key_file(path: Path) -> None:
    """Whole or not at all, and never over one that another process has just made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(urlsafe_b64encode(secrets.token_bytes(32)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        path.hardlink_to(part)
    except FileExistsError:
        pass
    finally:
        part.unlink()
