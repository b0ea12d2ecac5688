"""From a job's artifacts to repositories of the model hub. Whatever was interrupted is done again and makes nothing twice."""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RepositoryFile:
    """A file as it is to be in a repository. `content` is where it is, or what it holds; `size` is in bytes."""

    path: str
    content: Path | bytes
    size: int
    sha256: str

    @classmethod
    def of(cls, path: str, content: bytes) -> "RepositoryFile":
        return cls(path, content, len(content), hashlib.sha256(content).hexdigest())

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


@dataclass(frozen=True)
class Pushed:
    """`commit` is the head of the repository that holds all files; `is_new` is whether this push made it."""

    repo: str
    commit: str
    url: str
    is_new: bool
