"""The settings: environment variables with the prefix TUNESMITH_, overridden by flags of the same names."""

import hashlib
import os
import tempfile
from argparse import ArgumentParser
from base64 import urlsafe_b64decode
from collections.abc import Sequence
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

LONGEST_SOCKET_PATH = 100
"""In bytes; the kernels' limits are 104 and 108."""
KEY_BYTES = 32


MOST_KL = {"f16": 1e-3, "bf16": 1e-3, "q8_0": 0.05, "q6_k": 0.1, "q5_k_m": 0.1, "q4_k_m": 0.3, "q5_0": 0.5, "q5_1": 1.0}
"""`q5_0` and `q5_1` are what llama.cpp makes q4_k_m and q5_k_m of where a model's widths are no multiples of 256."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", env_ignore_empty=True, extra="ignore", hide_input_in_errors=True)

    data_dir: Path = Path("data")
    cache_dir: Path = Field(default_factory=lambda: Path.home() / ".cache" / "tunesmith")
    models_dir: Path | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    public_url: str | None = None
    bootstrap_key: SecretStr | None = None
    """The key that /v1 asks for; without it the server stays on loopback."""
    secret_key: SecretStr | None = None
    """What stored secrets are encrypted with; see `app.secrets.encryption`."""
    database_url: str | None = None
    broker_url: str | None = None
    lease_seconds: float = Field(default=60, gt=0)
    reaper_seconds: float = Field(default=10, gt=0)
    device_memory_bytes: int | None = Field(default=None, gt=0)
    most_kl: dict[str, float] = Field(default={}, validate_default=True)
    """By quantization: the mean divergence from the merged model, in nats per token, above which a file is not offered."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins whose web pages may call, as in `https://a.example,https://b.example`."""
    max_open_jobs: int | None = Field(default=None, ge=0)
    """How many jobs of a tenant may wait, run or be paused at a time."""
    max_stored_bytes: int | None = Field(default=None, ge=0)
    """What a tenant's files and artifacts may take."""
    requests_per_minute: int | None = Field(default=None, ge=0)
    """How many a tenant may send; 0 for any number. See `app.rate_limits` for the default."""
    webhook_allow_cidrs: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """Networks that webhooks may be sent to although they are not public, as in `10.0.0.0/8,fd00::/8`."""

    @field_validator("webhook_allow_cidrs", "cors_origins", mode="before")
    @classmethod
    def _is_a_list(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("secret_key")
    @classmethod
    def _holds_keys(cls, value: SecretStr | None) -> SecretStr | None:
        for key in value.get_secret_value().split(",") if value else ():
            if not is_key(key.strip()):
                raise ValueError(
                    "each key, separated by commas, must be 32 bytes in base64: `openssl rand -base64 32` makes one"
                )
        return value

    @field_validator("most_kl", mode="after")
    @classmethod
    def _has_all_kinds(cls, value: dict[str, float]) -> dict[str, float]:
        if unknown := value.keys() - MOST_KL.keys():
            raise ValueError(f"{min(unknown)} is none of {', '.join(MOST_KL)}")
        return MOST_KL | value

    @cached_property
    def root(self) -> Path:
        """The data folder, absolute."""
        return self.data_dir.expanduser().resolve()

    @property
    def address(self) -> str:
        """What absolute URLs begin with where no request tells, without a slash at the end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (self.public_url or f"http://{host}:{self.port}").rstrip("/")

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.root / 'tunesmith.db'}"

    @property
    def broker(self) -> str:
        """The broker's URL; by default the embedded server's socket under the data folder."""
        return self.broker_url or f"redis+socket://{quote(str(self.broker_socket))}?virtual_host=0"

    @property
    def broker_socket(self) -> Path:
        """Under the data folder, or, where its path is too long for a socket, in a folder for temporary files."""
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        own = f"tunesmith-{os.getuid()}-{digest}"
        folders = (self.root / "run", Path(tempfile.gettempdir()) / own, Path("/tmp") / own)  # noqa: S108 — `make_private`
        paths = [folder / "broker.sock" for folder in folders]
        return next((path for path in paths if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH), paths[-1])


def is_key(text: str) -> bool:
    try:
        return len(urlsafe_b64decode(text)) == KEY_BYTES
    except ValueError:
        return False


def read_flags(program: str, arguments: Sequence[str] | None = None, parents: Sequence[ArgumentParser] = ()) -> Settings:
    """The settings, with `--data-dir` and the like over the environment. Secrets have no flag: arguments are public.

    What a flag says is put into the environment, where child processes and the doorbell read it. `parents` bring flags
    of the program's own.
    """
    parser = ArgumentParser(prog=program, parents=parents)
    for name, field in Settings.model_fields.items():
        if field.annotation != SecretStr | None:
            parser.add_argument(f"--{name.replace('_', '-')}", dest=name, help=f"instead of TUNESMITH_{name.upper()}")
    flags = vars(parser.parse_args(arguments))
    given = {name: flags[name] for name in Settings.model_fields if flags.get(name) is not None}
    os.environ.update({f"TUNESMITH_{name.upper()}": value for name, value in given.items()})
    try:
        return Settings()
    except ValidationError as problem:
        parser.error("; ".join(f"{error['loc'][0]}: {error['msg']}" for error in problem.errors()))
