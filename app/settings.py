"""The settings: environment variables with the prefix TUNESMITH_, overridden by flags of the same names."""

from functools import cached_property
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", env_ignore_empty=True, extra="ignore")

    data_dir: Path = Path("data")
    cache_dir: Path = Field(default_factory=lambda: Path.home() / ".cache" / "tunesmith")
    models_dir: Path | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    public_url: str | None = None
    database_url: str | None = None
    broker_url: str | None = None
    lease_seconds: float = Field(default=60, gt=0)
    reaper_seconds: float = Field(default=10, gt=0)
    device_memory_bytes: int | None = Field(default=None, gt=0)

    @cached_property
    def root(self) -> Path:
        """The data folder, absolute."""
        return self.data_dir.expanduser().resolve()

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.root / 'tunesmith.db'}"

    @property
    def broker(self) -> str:
        """The broker's URL; by default the embedded server's socket under the data folder."""
        return self.broker_url or f"redis+socket://{self.broker_socket}?virtual_host=0"

    @property
    def broker_socket(self) -> Path:
        return self.root / "run" / "broker.sock"
