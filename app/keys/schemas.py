"""Keys as the API shows them: the key itself once, when it is made."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.keys.scopes import Scope
from app.models import ApiKey

TENANT_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
LONGEST_LIFE_SECONDS = 10 * 365 * 86400


class NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=100)] | None = None
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(Scope))] = [Scope.READ, Scope.WRITE]
    """Each stands for itself: `read` for GET, `write` for what changes something, `admin` for /v1/keys."""
    tenant: Annotated[str, Field(pattern=TENANT_PATTERN)] | None = None
    """Whose it is; by default the caller's own. Only an administrator of the tenant `default` may name another."""
    expires_in_seconds: Annotated[int, Field(ge=1, le=LONGEST_LIFE_SECONDS)] | None = None
    """Null: never."""


class Key(BaseModel):
    id: str
    object: Literal["api_key"] = "api_key"
    name: str | None
    tenant: str
    scopes: list[Scope]
    hint: str
    """The key's last four characters."""
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    """Within about an hour."""

    @classmethod
    def of(cls, row: ApiKey) -> "Key":
        return cls(**row.model_dump(exclude={"tenant_id"}), tenant=row.tenant_id)


class CreatedKey(Key):
    key: str
    """Shown now and never again: only its hash is stored."""


class DeletedKey(BaseModel):
    id: str
    object: Literal["api_key"] = "api_key"
    deleted: Literal[True] = True
