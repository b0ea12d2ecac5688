"""Files as the API shows them, in OpenAI's shape, and an upload before it is one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from app.models import File as FileRow


@dataclass(frozen=True)
class Upload:
    """A whole file that was received but has no row yet."""

    path: Path
    filename: str
    size: int
    sha256: str


class File(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: str
    """`uploaded`, then `processed` or `error` when a worker has read it."""
    status_details: str | None

    @classmethod
    def of(cls, row: FileRow, size: int) -> "File":
        return cls(
            id=row.id,
            bytes=size,
            created_at=int(row.created_at.timestamp()),
            filename=row.filename,
            purpose=row.purpose,
            status=row.status,
            status_details=row.status_details,
        )


class DeletedFile(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
