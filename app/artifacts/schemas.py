"""Artifacts as the API shows them."""

from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel

from app.models import Artifact as ArtifactRow


class Artifact(BaseModel):
    id: str
    object: Literal["artifact"] = "artifact"
    name: str
    kind: str
    bytes: int
    sha256: str
    created_at: datetime
    verification: dict[str, Any] | None
    url: str

    @classmethod
    def of(cls, row: ArtifactRow, size: int, base_url: str) -> "Artifact":
        return cls(
            id=row.id,
            name=row.name,
            kind=row.kind,
            bytes=size,
            sha256=row.blob_sha256,
            created_at=row.created_at,
            verification=row.verification,
            url=f"{base_url}/v1/jobs/{row.job_id}/artifacts/{quote(row.name)}",
        )
