"""Links that open one artifact for a while without a key: for browsers, wget, Ollama, and whoever else sends no header.

    URL/v1/links/1790000000.SIGNATURE/JOB/gguf/model.gguf

The signature is an HMAC-SHA256 over the end of its time, the job and the name. Its key is derived from the service's secret
key, so that a new secret key, once the old one is gone, ends all links.
"""

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from urllib.parse import quote

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine
from sqlmodel import Session

from app.artifacts import repository
from app.db import read_session
from app.errors import Forbidden
from app.jobs import repository as jobs
from app.models import Artifact, now
from app.secrets.encryption import load_keys
from app.settings import Settings

TOKEN = re.compile(r"([0-9]{1,12})\.([A-Za-z0-9_-]{43})")
LONGEST_SECONDS = 7 * 86400


class WantedLink(BaseModel):
    model_config = ConfigDict(extra="forbid")

    expires_in_seconds: int = Field(default=3600, ge=1, le=LONGEST_SECONDS)


class Link(BaseModel):
    url: str
    expires_at: datetime


def make(session: Session, settings: Settings, job_id: str, name: str, wanted: WantedLink, base_url: str) -> Link:
    """NotFound, or Conflict, where there is no such artifact that can be downloaded."""
    jobs.get(session, job_id)
    repository.get(session, job_id, name)
    expires = int(now().timestamp()) + wanted.expires_in_seconds
    token = f"{expires}.{sign(load_keys(settings)[0], expires, job_id, name)}"
    url = f"{base_url}/v1/links/{token}/{quote(job_id)}/{quote(name)}"
    return Link(url=url, expires_at=datetime.fromtimestamp(expires, UTC))


def sign(secret_key: str, expires: int, job_id: str, name: str) -> str:
    derivation = HKDF(SHA256(), length=32, salt=None, info=b"tunesmith links to artifacts")
    key = derivation.derive(urlsafe_b64decode(secret_key))
    message = f"{expires}\n{job_id}\n{name}".encode("utf-8", "surrogateescape")
    return urlsafe_b64encode(hmac.digest(key, message, "sha256")).decode().rstrip("=")


def open_link(engine: Engine, settings: Settings, token: str, job_id: str, name: str) -> Artifact:
    """The artifact of a link; Forbidden when the link was changed or its time is over. It is of whichever tenant made it."""
    parts = TOKEN.fullmatch(token)
    expires, signature = (int(parts[1]), parts[2]) if parts else (0, "")
    signatures = [sign(key, expires, job_id, name) for key in load_keys(settings)]
    if not any(hmac.compare_digest(signature, valid) for valid in signatures):
        raise Forbidden("This link is not one that the service made. Ask for a new one.")
    if expires <= now().timestamp():
        raise Forbidden("The time of this link is over. Ask for a new one.")
    with read_session(engine) as session:
        return repository.get(session, job_id, name)
