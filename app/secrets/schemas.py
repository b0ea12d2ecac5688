"""Secrets as the API shows them: never their values."""

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from app.jobs.spec import SECRET_NAME

MAX_VALUE_LENGTH = 4096
PRINTABLE = re.compile(r"[!-~]([ -~]*[!-~])?")

NAME_PATTERN = f"^{SECRET_NAME}$"


class SecretValue(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    value: Annotated[SecretStr, Field(min_length=1, max_length=MAX_VALUE_LENGTH)]

    @field_validator("value")
    @classmethod
    def _is_printable(cls, value: SecretStr) -> SecretStr:
        if not PRINTABLE.fullmatch(value.get_secret_value()):
            raise ValueError("only printable ASCII is taken, with no space or line break at either end")
        return value


class Secret(BaseModel):
    name: str
    object: Literal["secret"] = "secret"
    created_at: datetime
    updated_at: datetime


class DeletedSecret(BaseModel):
    name: str
    object: Literal["secret"] = "secret"
    deleted: Literal[True] = True
